"""A kernel's arguments as the driver takes them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Protocol

import numpy as np

# a place of 8 bytes, whose first ones the kernel reads, as struct writes it
NUMBERS = {"u8": "B7x", "u16": "H6x", "u32": "I4x", "u64": "Q", "i32": "i4x", "i64": "q", "f32": "f4x"}


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
        self._places = np.zeros(max(len(parameters), 1), np.uint64)
        self._table = self._places.ctypes.data + 8 * np.arange(len(self._places), dtype=np.uint64)
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
        given = self.parameters.items(), values
        try:
            numbers = [_address(v) if word.endswith("*") else v for (_, word), v in zip(*given, strict=True)]
            _form(tuple(self.parameters.values())).pack_into(self._places.data, 0, *numbers)
        except (struct.error, TypeError, OverflowError):
            for (name, word), value in zip(*given, strict=True):
                _check(name, word, value)
            raise


@cache
def _form(words: tuple[str, ...]) -> struct.Struct:
    return struct.Struct("<" + "".join("Q" if word.endswith("*") else NUMBERS[word] for word in words))


def _address(value: Argument) -> Any:
    return 0 if value is None else getattr(value, "address", value)


def _check(name: str, word: str, value: Argument) -> None:
    try:
        _form((word,)).pack(_address(value) if word.endswith("*") else value)
    except (struct.error, TypeError, OverflowError):
        if word.endswith("*"):
            told = f"{name} is a pointer: give it memory, an address or None, not {value!r}"
            raise TypeError(told) from None
        if not isinstance(value, int | float | np.number):
            raise TypeError(f"{name} is a number ({word}), not {type(value).__name__}") from None
        raise ValueError(f"{name} = {value} is no {word}") from None
