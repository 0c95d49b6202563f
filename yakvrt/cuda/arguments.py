"""A kernel's arguments as the driver takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

NUMBERS: Mapping[str, type[np.number[Any]]] = {
    "u8": np.uint8,
    "u16": np.uint16,
    "u32": np.uint32,
    "u64": np.uint64,
    "i32": np.int32,
    "i64": np.int64,
    "f32": np.float32,
}


class Addressed(Protocol):
    """Memory that a kernel can reach: DeviceMemory, PinnedMemory."""

    @property
    def address(self) -> int: ...


Argument = int | float | Addressed | None


class Arguments:
    """Places of 8 bytes for the parameters of one kernel, and the table of their addresses.

    The driver reads the values when a kernel is launched, so they may be changed between launches.
    """

    def __init__(self, parameters: Mapping[str, str], values: Iterable[Argument] = ()) -> None:
        """`parameters`: name and type of each, as a manifest holds them."""
        self.parameters = parameters
        self._slots = np.zeros(max(len(parameters), 1), np.uint64)
        self._table = self._slots.ctypes.data + 8 * np.arange(len(self._slots), dtype=np.uint64)
        # the first bytes of a place, as the kernel reads them
        self._numbers = [
            self._slots[i : i + 1].view(np.uint64 if word.endswith("*") else NUMBERS[word])
            for i, word in enumerate(parameters.values())
        ]
        given = tuple(values)
        if given:
            self.put(given)

    @property
    def table(self) -> int:
        """Address of the table of addresses."""
        return int(self._table.ctypes.data)

    def put(self, values: tuple[Argument, ...]) -> None:
        """Raises: TypeError or ValueError naming the parameter that does not take its value."""
        if len(values) != len(self.parameters):
            raise TypeError(f"{len(values)} arguments for the parameters {', '.join(self.parameters)}")
        for place, (name, word), value in zip(self._numbers, self.parameters.items(), values, strict=True):
            place[0] = _address(name, value) if word.endswith("*") else _number(name, word, value)


def _address(name: str, value: Argument) -> int:
    if value is None:
        return 0
    if isinstance(value, float):
        raise TypeError(f"{name} is a pointer: give it memory, an address or None, not {value!r}")
    return int(value) if isinstance(value, int | np.integer) else value.address


def _number(name: str, word: str, value: Argument) -> np.number[Any]:
    if not isinstance(value, int | float | np.number | np.bool_):
        raise TypeError(f"{name} is a number ({word}), not {type(value).__name__}")
    number = NUMBERS[word]
    if number is np.float32:
        return np.float32(value)
    limits, whole = np.iinfo(number), int(value)  # type: ignore[type-var]
    if whole != value or not limits.min <= whole <= limits.max:
        raise ValueError(f"{name} = {value} is no {word}")
    return number(whole)
