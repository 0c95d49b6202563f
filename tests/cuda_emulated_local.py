"""Local arrays of an emulated CUDA thread, which nobody else can reach: numbers by their index, since
reading a dict is much faster than reading numpy's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from cuda_emulated_memory import Running, poison

_put = dict.__setitem__


class _Local(dict[int, Any]):
    def __missing__(self, index: int) -> Any:
        raise Running.thread.error(f"reaches element {index} of a local array, which has {len(self)}")

    def hide(self, value: Any) -> None:
        """Every element becomes the value, as it is."""
        dict.update(self, dict.fromkeys(self, value))

    def show(self, hidden: Any, values: list[Any]) -> None:
        """What was hidden gets its values."""
        if any(value is not hidden for value in self.values()):
            raise Running.thread.error("writes to a local array that products change")
        dict.update(self, enumerate(values))


class _Floats(_Local):
    def __setitem__(self, index: int, value: Any) -> None:
        if index not in self:
            self.__missing__(index)
        _put(self, index, value if value.__class__ is np.float32 else np.float32(value))


class _Unsigned(_Local):
    def __setitem__(self, index: int, value: Any) -> None:
        if index not in self:
            self.__missing__(index)
        _put(self, index, int(value) & 0xFFFFFFFF)


class _Signed(_Local):
    def __setitem__(self, index: int, value: Any) -> None:
        if index not in self:
            self.__missing__(index)
        _put(self, index, ((int(value) + 0x80000000) & 0xFFFFFFFF) - 0x80000000)


_KINDS: dict[type[np.generic], type[_Local]] = {np.float32: _Floats, np.uint32: _Unsigned, np.int32: _Signed}


def local_array(number: type[np.generic]) -> Callable[[int], _Local]:
    """What makes arrays of n such numbers, full of poison."""
    kind, (poisonous,) = _KINDS[number], poison(np.empty(1, number))
    value = poisonous if number is np.float32 else int(poisonous)

    @cache
    def poisoned(n: int) -> dict[int, Any]:
        return dict.fromkeys(range(n), value)

    return lambda n: kind(poisoned(n))
