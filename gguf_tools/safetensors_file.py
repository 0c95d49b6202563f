"""One safetensors file, memory-mapped: tensors as views of the mapping, nothing in the header trusted.

Source: the safetensors format description (8 bytes of length, a JSON header, the data).
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats import FORMATS, Format

MAX_HEADER_BYTES: Final = 100_000_000
MAX_DIMS: Final = 8
FLOATS: Final = ("F32", "F16", "BF16", "F64")


class SafetensorsError(ValueError):
    """A safetensors file that cannot be read; the message names the file and what is wrong."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file; `data` is a read-only view of the mapping.

    Shapes: data uint8, shape[:-1] + (row_bytes,).
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    data: NDArray[np.uint8]
    mapping: mmap.mmap
    offset: int

    def release(self) -> None:
        """Lets the kernel drop this tensor's pages from memory; the data stays readable."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = self.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self.mapping.madvise(mmap.MADV_DONTNEED, start, self.offset + self.data.nbytes - start)


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file.

    Raises: SafetensorsError for anything malformed; OSError when the file cannot be opened.
    """
    with path.open("rb") as file:
        if not path.is_file() or file.seek(0, 2) < 10:
            raise SafetensorsError(f"{path}: not a safetensors file, it is too short; fetch it again")
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _tensors(path, mapping)
    except SafetensorsError:
        with suppress(BufferError):
            mapping.close()
        raise


def _tensors(path: Path, mapping: mmap.mmap) -> dict[str, StoredTensor]:
    length = int.from_bytes(mapping[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(mapping) - 8):
        raise SafetensorsError(
            f"{path}: a header of {length} bytes is announced, which cannot be; fetch it again"
        )
    try:
        header = json.loads(mapping[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise SafetensorsError(f"{path}: the header is not JSON ({error}); fetch it again") from None
    if not isinstance(header, dict):
        raise SafetensorsError(f"{path}: the header is no JSON object; fetch it again")
    whole = np.frombuffer(mapping, np.uint8)
    tensors: dict[str, StoredTensor] = {}
    taken: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        fmt, shape, start, end = _entry(path, name, entry)
        if not 0 <= start <= end <= len(mapping) - 8 - length:
            raise SafetensorsError(f"{path}: tensor {name[:80]!r} lies outside the file; fetch it again")
        row_bytes = fmt.row_bytes(shape[-1])
        if math.prod(shape[:-1]) * row_bytes != end - start:
            raise SafetensorsError(
                f"{path}: tensor {name[:80]!r} of shape {shape} does not fill its {end - start} bytes"
            )
        offset = 8 + length + start
        data = whole[offset : offset + end - start].reshape(*shape[:-1], row_bytes)
        tensors[name] = StoredTensor(name, shape, fmt, data, mapping, offset)
        taken.append((start, end))
    taken.sort()
    if any(end > start for (_, end), (start, _) in itertools.pairwise(taken)):
        raise SafetensorsError(f"{path}: tensors overlap; fetch it again")
    return tensors


def _entry(path: Path, name: str, entry: Any) -> tuple[Format, tuple[int, ...], int, int]:
    shown = name[:80]
    described = entry if isinstance(entry, dict) else {}
    kind, shape, place = described.get("dtype"), described.get("shape"), described.get("data_offsets")
    if kind not in FLOATS:
        raise SafetensorsError(
            f"{path}: tensor {shown!r} has the type {str(kind)[:20]!r}; F32, F16, BF16 and F64 are read"
        )
    numbers: list[Any] = shape if isinstance(shape, list) else [None]
    offsets: list[Any] = place if isinstance(place, list) and len(place) == 2 else [None]
    if any(type(n) is not int or not 0 <= n < 1 << 48 for n in [*numbers, *offsets]):
        raise SafetensorsError(f"{path}: tensor {shown!r} has a malformed shape or place; fetch it again")
    if not 1 <= len(numbers) <= MAX_DIMS or 0 in numbers:
        raise SafetensorsError(f"{path}: tensor {shown!r} has the shape {numbers}, which holds no weights")
    return FORMATS[kind], tuple(numbers), offsets[0], offsets[1]
