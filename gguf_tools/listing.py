"""What a GGUF file says about itself, entry by entry, as gguf-py's tools list it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from gguf_tools.meta_value import ValueType, item_type
from gguf_tools.metadata import SCALARS
from gguf_tools.reader import GGUFFile
from gguf_tools.terminal import shown
from gguf_tools.writer import padded

# Magic, version and the two counts.
HEADER_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class Entry:
    """One metadata entry: `offset` is where its key begins, `count` its entries (1 unless an array)."""

    key: str
    types: tuple[ValueType, ...]
    count: int
    offset: int

    @property
    def type_text(self) -> str:
        """The type as gguf-py writes it, arrays in brackets."""
        depth = len(self.types) - 1
        return "[" * depth + self.types[-1].name + "]" * depth


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor's description: `info_offset` is where it begins, `data_offset` where the data begin."""

    name: str
    shape: tuple[int, ...]
    type: str
    n_values: int
    n_bytes: int
    info_offset: int
    data_offset: int

    @property
    def file_shape(self) -> list[int]:
        """The dimensions in the file's order, fastest-varying first."""
        return list(reversed(self.shape))


def header_entries(file: GGUFFile) -> list[tuple[Entry, int]]:
    """The three numbers of the header with their values, under gguf-py's names for them."""
    u64, u32 = ValueType.UINT64, ValueType.UINT32
    return [
        (Entry("GGUF.version", (u32,), 1, 4), file.version),
        (Entry("GGUF.tensor_count", (u64,), 1, 8), len(file.tensors)),
        (Entry("GGUF.kv_count", (u64,), 1, 16), len(file.metadata)),
    ]


def entries(file: GGUFFile) -> Iterator[Entry]:
    """Every metadata entry in file order."""
    for key in file.metadata:
        type_id, value_at = file.metadata.place(key)
        types: tuple[ValueType, ...] = (ValueType(type_id),)
        count = 1
        if types[0] is ValueType.ARRAY:
            types = (*types, item_type(file.metadata, key))
            count = file.metadata.first(key, 0)[1]
        yield Entry(key, types, count, value_at - 4 - len(key.encode()) - 8)


def tensor_entries(file: GGUFFile) -> Iterator[TensorEntry]:
    """Every tensor in the order of the descriptions."""
    offset = _infos_start(file)
    for tensor in file.tensors.values():
        yield TensorEntry(
            tensor.name,
            tensor.shape,
            tensor.format.name,
            math.prod(tensor.shape),
            tensor.data.nbytes,
            offset,
            tensor.offset,
        )
        offset += _info_bytes(tensor.name, len(tensor.shape))


def data_start(file: GGUFFile) -> int:
    """The byte where the tensor data section begins."""
    infos = sum(_info_bytes(tensor.name, len(tensor.shape)) for tensor in file.tensors.values())
    return padded(_infos_start(file) + infos, file.alignment)


def value_text(file: GGUFFile, entry: Entry) -> str:
    """The value in one short line: strings and arrays cut, control characters escaped."""
    if entry.types[0] is ValueType.ARRAY:
        some, n_entries = file.metadata.first(entry.key, 6)
        if entry.types[1] is ValueType.FLOAT32:
            text = "[" + ", ".join(scalar_text(entry.types[1], item) for item in some) + "]"
        else:
            text = repr(some)
        return text[:-1] + ", ...]" if n_entries > len(some) else text
    value = file.metadata[entry.key]
    if entry.types[0] is ValueType.STRING:
        return repr(value if len(value) <= 60 else value[:57] + "...")
    return scalar_text(entry.types[0], value)


def scalar_text(value_type: ValueType, value: float | bool) -> str:
    """A number with as few digits as tell it apart within its type."""
    return str(np.float32(value)) if value_type is ValueType.FLOAT32 else str(value)


def as_json(path: str | Path, file: GGUFFile, *, arrays: bool, tensors: bool) -> dict[str, Any]:
    """The structure that gguf-dump --json prints, with sizes and data offsets of tensors added."""
    metadata: dict[str, dict[str, Any]] = {}
    listed = [*header_entries(file), *((entry, None) for entry in entries(file))]
    for index, (entry, value) in enumerate(listed):
        shown_entry: dict[str, Any] = {"index": index, "type": entry.types[0].name, "offset": entry.offset}
        if entry.types[0] is ValueType.ARRAY:
            shown_entry["array_types"] = [item.name for item in entry.types[1:]]
            shown_entry["count"] = entry.count
        if entry.types[0] is not ValueType.ARRAY or arrays:
            shown_entry["value"] = _finite(file.metadata[entry.key] if value is None else value)
        metadata[entry.key] = shown_entry
    described = {
        tensor.name: {
            "index": index,
            "shape": tensor.file_shape,
            "type": tensor.type,
            "offset": tensor.info_offset,
            "data_offset": tensor.data_offset,
            "n_bytes": tensor.n_bytes,
        }
        for index, tensor in enumerate(tensor_entries(file) if tensors else ())
    }
    return {"filename": str(path), "endian": "LITTLE", "metadata": metadata, "tensors": described}


def table_text(file: GGUFFile, *, tensors: bool) -> Iterator[str]:
    """The lines of the plain listing."""
    header = header_entries(file)
    yield f"* Dumping {len(header) + len(file.metadata)} key/value pair(s)"
    for n, (entry, value) in enumerate(header, 1):
        yield f"  {n:5}: {entry.type_text:10} | {entry.count:8} | {entry.key} = {value}"
    for n, entry in enumerate(entries(file), 1 + len(header)):
        text = value_text(file, entry)
        yield f"  {n:5}: {entry.type_text:10} | {entry.count:8} | {shown(entry.key)} = {text}"
    if not tensors:
        return
    yield f"* Dumping {len(file.tensors)} tensor(s)"
    for n, tensor in enumerate(tensor_entries(file), 1):
        dims = ", ".join(f"{dim:5}" for dim in [*tensor.file_shape, 1, 1, 1][:4])
        yield f"  {n:5}: {tensor.n_values:10} | {dims} | {tensor.type:7} | {shown(tensor.name)}"


def _infos_start(file: GGUFFile) -> int:
    *_, last = [None, *file.metadata]
    if last is None:
        return HEADER_BYTES
    return file.metadata.place(last)[1] + len(file.metadata.stored(last))


def _info_bytes(name: str, n_dims: int) -> int:
    return 8 + len(name.encode()) + 4 + 8 * n_dims + 4 + 8


def _finite(value: Any) -> Any:
    """JSON knows no NaN or infinity: those become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return [_finite(item) for item in value] if isinstance(value, list) else value


def integer_types() -> frozenset[ValueType]:
    """The whole-number types."""
    return frozenset(ValueType(i) for i, (_, kind) in SCALARS.items() if kind.strip("<")[0] in "ui")
