"""Ctrl-C, or whatever else happens, while the driver does something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cuda.bindings import driver as bindings

from yakvrt.cuda import driver


def interrupt() -> None:
    raise KeyboardInterrupt


class Interruption:
    """Stands in for cuda.bindings: something happens right `after` the n-th call of one of `names` (of any,
    without names), or before it. n = 0: never. `asked`: the calls so far.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        n: int,
        *names: str,
        after: bool = True,
        happens: Callable[[], object] = interrupt,
    ) -> None:
        self.n, self.names, self.after, self.happens = n, names, after, happens
        self.asked: list[str] = []
        monkeypatch.setattr(driver, "_bindings", lambda: self)

    @property
    def happened(self) -> bool:
        return len(self.asked) >= self.n > 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(bindings, name)
        if not name.startswith("cu") or (self.names and name not in self.names):
            return found
        return self._watched(name, found)

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            self.asked.append(name)
            now = len(self.asked) == self.n
            if now and not self.after:
                self.happens()
            answer = function(*arguments)
            if now and self.after:
                self.happens()
            return answer

        return called
