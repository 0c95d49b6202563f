"""The key-value section of a GGUF file: one bounded pass records offsets, values decode on access.

Source: the GGUF specification in ggml's docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

STRING: Final = 8
ARRAY: Final = 9
# Fixed-size value types: GGUF id -> (struct code, numpy type).
SCALARS: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        0: ("<B", "u1"),
        1: ("<b", "i1"),
        2: ("<H", "<u2"),
        3: ("<h", "<i2"),
        4: ("<I", "<u4"),
        5: ("<i", "<i4"),
        6: ("<f", "<f4"),
        7: ("<?", "?"),
        10: ("<Q", "<u8"),
        11: ("<q", "<i8"),
        12: ("<d", "<f8"),
    }
)
MAX_NAME_BYTES: Final = 65535
MAX_ENTRIES: Final = 1 << 17
# Array entries of a whole file: bounds the time to walk strings and the memory of a decoded list.
MAX_ARRAY_ENTRIES: Final = 1 << 24
MAX_NESTING: Final = 4
_U64: Final = struct.Struct("<Q")
_TYPE_AND_COUNT: Final = struct.Struct("<IQ")


class GGUFError(ValueError):
    """A GGUF file that cannot be read; the message names the file, the offset and what is wrong."""


class Cursor:
    """A position in a mapped file; every read is checked against the end of the file."""

    __slots__ = ("data", "entries", "offset", "path", "size")

    def __init__(self, path: Path, data: memoryview, offset: int) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.offset = offset
        self.entries = 0

    def fail(self, what: str, offset: int | None = None) -> GGUFError:
        """An error about this file at an offset (the current one when none is given)."""
        return GGUFError(f"{self.path}: {what} (at byte {self.offset if offset is None else offset})")

    def skip(self, n_bytes: int, what: str) -> None:
        """Moves past n_bytes, which must lie inside the file."""
        if n_bytes > self.size - self.offset:
            raise self.fail(f"the file ends inside {what}: {n_bytes} bytes announced, {self.left()} left")
        self.offset += n_bytes

    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self.size - self.offset

    def number(self, code: str, what: str) -> Any:
        """Reads one fixed-size value."""
        start = self.offset
        self.skip(struct.calcsize(code), what)
        return struct.unpack_from(code, self.data, start)[0]

    def name(self, what: str) -> str:
        """Reads a short string that must be valid UTF-8."""
        start = self.offset
        length: int = self.number("<Q", what)
        if length > MAX_NAME_BYTES:
            raise self.fail(f"{what} of {length} bytes is over the limit of {MAX_NAME_BYTES}", start)
        self.skip(length, what)
        try:
            return bytes(self.data[self.offset - length : self.offset]).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not valid UTF-8", start) from None

    def skip_value(self, value_type: int, what: str) -> None:
        """Moves past one value of any type."""
        if value_type == STRING:
            self._skip_strings(1, what)
        elif value_type == ARRAY:
            self._skip_array(what, 1)
        else:
            self.skip(self._item_bytes(value_type, what), what)

    def _item_bytes(self, value_type: int, what: str) -> int:
        scalar = SCALARS.get(value_type)
        if scalar is None:
            raise self.fail(f"{what} has the unknown value type {value_type}")
        return struct.calcsize(scalar[0])

    def _announce(self, count: int, item_bytes: int, what: str) -> None:
        self.entries += count
        if count > self.left() // item_bytes:
            raise self.fail(
                f"the file ends inside {what}: {count} entries announced, {self.left()} bytes left"
            )
        if self.entries > MAX_ARRAY_ENTRIES:
            raise self.fail(f"{what} has {count}; at most {MAX_ARRAY_ENTRIES} entries are read in all")

    def _skip_array(self, what: str, depth: int) -> None:
        start = self.offset
        self.skip(_TYPE_AND_COUNT.size, what)
        item_type, count = _TYPE_AND_COUNT.unpack_from(self.data, start)
        if item_type == STRING:
            self._skip_strings(count, what)
        elif item_type == ARRAY:
            if depth >= MAX_NESTING:
                raise self.fail(f"{what} nests arrays more than {MAX_NESTING} deep")
            self._announce(count, _TYPE_AND_COUNT.size, what)
            for _ in range(count):
                self._skip_array(what, depth + 1)
        else:
            item_bytes = self._item_bytes(item_type, what)
            self._announce(count, item_bytes, what)
            self.offset += count * item_bytes

    def _skip_strings(self, count: int, what: str) -> None:
        self._announce(count, _U64.size, what)
        data, offset, unpack = self.data, self.offset, _U64.unpack_from
        try:
            for _ in range(count):
                offset += 8 + unpack(data, offset)[0]
        except (struct.error, OverflowError):
            offset = self.size + 1
        if offset > self.size:
            raise self.fail(f"the file ends inside {what}: a string reaches past the end")
        self.offset = offset


class Metadata(Mapping[str, Any]):
    """Keys to values; a value is decoded each time it is asked for, so keep what is used often.

    Numbers become int, float or bool; strings str (bytes that are not UTF-8 become U+FFFD); arrays lists.
    """

    __slots__ = ("_data", "_places")

    def __init__(self, data: memoryview, places: dict[str, tuple[int, int, int]]) -> None:
        self._data = data
        self._places = places

    def __getitem__(self, key: str) -> Any:
        value_type, start, _ = self._places[key]
        return self._value(value_type, start)[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def place(self, key: str) -> tuple[int, int]:
        """The value's type id and the byte of the file where the value begins (after the type)."""
        value_type, start, _ = self._places[key]
        return value_type, start

    def stored(self, key: str) -> memoryview:
        """The value's undecoded bytes, a view of the mapped file that stays valid on its own."""
        _, start, end = self._places[key]
        return self._data[start:end]

    def first(self, key: str, count: int) -> tuple[list[Any], int]:
        """At most `count` entries of an array, and how many it has; a nested array counts as one entry.

        Raises: TypeError when the value is not an array.
        """
        value_type, start, _ = self._places[key]
        if value_type != ARRAY:
            raise TypeError(f"the metadata value {key[:80]!r} is not an array")
        _, n_entries = _TYPE_AND_COUNT.unpack_from(self._data, start)
        return self._array(start, count)[0], n_entries

    def _value(self, value_type: int, offset: int) -> tuple[Any, int]:
        if value_type == STRING:
            strings, offset = self._strings(1, offset)
            return strings[0], offset
        if value_type == ARRAY:
            return self._array(offset)
        code = SCALARS[value_type][0]
        return struct.unpack_from(code, self._data, offset)[0], offset + struct.calcsize(code)

    def _array(self, offset: int, at_most: int = MAX_ARRAY_ENTRIES) -> tuple[list[Any], int]:
        item_type, count = _TYPE_AND_COUNT.unpack_from(self._data, offset)
        count = min(count, at_most)
        offset += _TYPE_AND_COUNT.size
        if item_type == STRING:
            return self._strings(count, offset)
        if item_type == ARRAY:
            values = []
            for _ in range(count):
                value, offset = self._array(offset)
                values.append(value)
            return values, offset
        numbers = np.frombuffer(self._data, SCALARS[item_type][1], count, offset)
        return numbers.tolist(), offset + numbers.nbytes

    def _strings(self, count: int, offset: int) -> tuple[list[str], int]:
        data, unpack = self._data, _U64.unpack_from
        strings = []
        for _ in range(count):
            start = offset + 8
            offset = start + unpack(data, offset)[0]
            strings.append(str(data[start:offset], "utf-8", "replace"))
        return strings, offset


def read_metadata(cursor: Cursor, count: int) -> Metadata:
    """Walks `count` key-value pairs and leaves the cursor behind them.

    Raises: GGUFError for anything malformed, duplicate keys included.
    """
    places: dict[str, tuple[int, int, int]] = {}
    for _ in range(count):
        start = cursor.offset
        key = cursor.name("a metadata key")
        if key in places:
            raise cursor.fail(f"the metadata key {key[:80]!r} occurs twice", start)
        what = f"the metadata value {key[:80]!r}"
        value_type: int = cursor.number("<I", what)
        value_start = cursor.offset
        cursor.skip_value(value_type, what)
        places[key] = (value_type, value_start, cursor.offset)
    return Metadata(cursor.data, places)
