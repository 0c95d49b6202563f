"""Ctrl-C while the driver does something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cuda.bindings import driver as bindings

from yakvrt.cuda import driver


class Interruption:
    """Stands in for cuda.bindings; KeyboardInterrupt is raised right `after` the n-th call of one of `names`
    (of any, without names), or before it. n = 0: never. `asked`: the calls so far.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n: int, *names: str, after: bool = True) -> None:
        self.n, self.names, self.after = n, names, after
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
                raise KeyboardInterrupt
            answer = function(*arguments)
            if now:
                raise KeyboardInterrupt
            return answer

        return called
