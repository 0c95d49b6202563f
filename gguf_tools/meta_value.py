"""Metadata values in their stored form: a GGUF type and the bytes behind it, so that copies change nothing.

Source: the GGUF specification in ggml's docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.metadata import MAX_ARRAY_ENTRIES, SCALARS, Metadata


class ValueType(IntEnum):
    """The types a metadata value can have, with their ids in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


@dataclass(frozen=True, slots=True)
class MetaValue:
    """One value ready to be written; make it with scalar, string, array or stored_value."""

    type: ValueType
    stored: bytes | memoryview


def scalar(value_type: ValueType, value: float) -> MetaValue:
    """A number or truth value of a fixed-size type.

    Raises: ValueError when the type cannot hold the value.
    """
    return MetaValue(value_type, _pack(value_type, value))


def string(text: str | bytes) -> MetaValue:
    """A string value; bytes are stored as they are."""
    return MetaValue(ValueType.STRING, string_bytes(text))


def array(item_type: ValueType, values: Sequence[Any] | NDArray[Any]) -> MetaValue:
    """A flat array of numbers or strings, also an empty one.

    Raises: ValueError for values that the item type cannot hold, nested arrays or too many entries.
    """
    if len(values) > MAX_ARRAY_ENTRIES:
        raise ValueError(f"an array of {len(values)} entries is over the limit of {MAX_ARRAY_ENTRIES}")
    head = struct.pack("<IQ", item_type, len(values))
    if item_type is ValueType.STRING:
        return MetaValue(ValueType.ARRAY, head + b"".join(map(string_bytes, values)))
    if isinstance(values, np.ndarray) and values.dtype == np.dtype(_scalar_layout(item_type)[1]):
        return MetaValue(ValueType.ARRAY, head + values.tobytes())
    return MetaValue(ValueType.ARRAY, head + b"".join(_pack(item_type, item) for item in values))


def stored_value(metadata: Metadata, key: str) -> MetaValue:
    """A value of an open file, byte for byte, whatever its type."""
    return MetaValue(ValueType(metadata.place(key)[0]), metadata.stored(key))


def stored_values(metadata: Metadata) -> dict[str, MetaValue]:
    """All values of an open file, byte for byte and in their order."""
    return {key: stored_value(metadata, key) for key in metadata}


def string_bytes(text: str | bytes) -> bytes:
    """A string as the file stores it: its length in bytes, then the bytes."""
    raw = text.encode("utf-8") if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def item_type(metadata: Metadata, key: str) -> ValueType:
    """The type of the entries of an array (ARRAY when it is nested)."""
    return ValueType(int.from_bytes(metadata.stored(key)[:4], "little"))


def _scalar_layout(value_type: ValueType) -> tuple[str, str]:
    layout = SCALARS.get(value_type)
    if layout is None:
        raise ValueError(f"{value_type.name} is not a fixed-size type; use UINT8 to FLOAT64 or BOOL")
    return layout


def _pack(value_type: ValueType, value: float) -> bytes:
    code = _scalar_layout(value_type)[0]
    try:
        return struct.pack(code, value)
    except (struct.error, OverflowError, TypeError):
        raise ValueError(
            f"{str(value)[:80]!r} does not fit the metadata type {value_type.name}; use a wider type"
        ) from None
