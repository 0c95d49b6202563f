"""One GGUF file, memory-mapped: metadata on demand and tensors as views of the mapping.

Nothing in the file is trusted: every count, length, offset and shape is checked before it is used.
Source: the GGUF specification in ggml's docs/gguf.md.
"""

from __future__ import annotations

import mmap
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats import Format, by_id
from gguf_tools.metadata import MAX_ENTRIES, Cursor, GGUFError, Metadata, read_metadata

__all__ = ["GGUFError", "GGUFFile", "Tensor"]

MAGIC: Final = b"GGUF"
MAX_DIMS: Final = 4
MAX_ALIGNMENT: Final = 1 << 20
DEFAULT_ALIGNMENT: Final = 32


@dataclass(frozen=True, slots=True)
class Tensor:
    """One stored tensor; `data` is a read-only view of the mapped file that stays valid on its own.

    `offset` is where the data begin in the file.

    Shapes: shape in numpy order (rows, cols); data uint8, shape[:-1] + (row_bytes,).
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    data: NDArray[np.uint8] = field(repr=False)
    _mapping: mmap.mmap = field(repr=False)
    offset: int = field(repr=False)

    def release(self) -> None:
        """Lets the kernel drop this tensor's pages from memory; the data stays readable."""
        if hasattr(mmap, "MADV_DONTNEED") and hasattr(self._mapping, "madvise"):
            # Whole pages, outwards: a neighbour's page that goes too is read again when it is needed.
            start = self.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._mapping.madvise(mmap.MADV_DONTNEED, start, self.offset + self.data.nbytes - start)


class GGUFFile:
    """A GGUF file opened for reading.

    Raises: GGUFError for anything malformed; OSError when the file cannot be opened.
    """

    __slots__ = ("_mapping", "alignment", "metadata", "path", "tensors", "version")

    path: Path
    version: int
    alignment: int
    metadata: Metadata
    tensors: dict[str, Tensor]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._mapping = _map(self.path)
        try:
            self._read()
        except GGUFError:
            self.close()
            raise

    def close(self) -> None:
        """Drops the file; the mapping goes once no view of it (Tensor.data) is left."""
        self.tensors = {}
        self.metadata = Metadata(memoryview(b""), {})
        with suppress(BufferError):
            self._mapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        cursor = Cursor(self.path, memoryview(self._mapping), 0)
        self.version = _read_version(cursor)
        n_tensors = _read_count(cursor, "tensors")
        n_keys = _read_count(cursor, "metadata keys")
        self.metadata = read_metadata(cursor, n_keys)
        self.alignment = _alignment(cursor, self.metadata)
        places = _read_places(cursor, n_tensors)
        data_start = -(-cursor.offset // self.alignment) * self.alignment
        _check_places(cursor, places, data_start, self.alignment)
        whole = np.frombuffer(self._mapping, np.uint8)
        self.tensors = {}
        for place in places:
            start = data_start + place.offset
            row_shape = (*place.shape[:-1], place.format.row_bytes(place.shape[-1]))
            data = whole[start : start + place.n_bytes].reshape(row_shape)
            self.tensors[place.name] = Tensor(
                place.name, place.shape, place.format, data, self._mapping, start
            )


@dataclass(frozen=True, slots=True)
class _Place:
    """What the file says about one tensor."""

    name: str
    shape: tuple[int, ...]
    format: Format
    offset: int
    n_bytes: int
    said_at: int


def _map(path: Path) -> mmap.mmap:
    # Opening a pipe would wait for its writer.
    if not stat.S_ISREG(path.stat().st_mode):
        raise GGUFError(f"{path}: not a regular file; give the path of a .gguf file")
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            raise GGUFError(f"{path}: the file is empty; download or copy it again")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_version(cursor: Cursor) -> int:
    if bytes(cursor.data[:4]) != MAGIC:
        raise cursor.fail(f"not a GGUF file: it starts with {bytes(cursor.data[:4])!r}, not {MAGIC!r}")
    cursor.offset = 4
    version: int = cursor.number("<I", "the version")
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0 and version:
        raise cursor.fail("this is a big-endian GGUF file; only little-endian ones are read", 4)
    raise cursor.fail(f"GGUF version {version} is not supported; versions 2 and 3 are read", 4)


def _read_count(cursor: Cursor, what: str) -> int:
    start = cursor.offset
    count: int = cursor.number("<Q", f"the number of {what}")
    if count > MAX_ENTRIES:
        raise cursor.fail(f"the file announces {count} {what}; at most {MAX_ENTRIES} are read", start)
    return count


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.fail(
            f"general.alignment is {str(value)[:80]}; it must be a power of two from 8 to {MAX_ALIGNMENT}"
        )
    return value


def _read_places(cursor: Cursor, count: int) -> list[_Place]:
    places: dict[str, _Place] = {}
    for _ in range(count):
        start = cursor.offset
        name = cursor.name("a tensor name")
        if name in places:
            raise cursor.fail(f"the tensor {name[:80]!r} occurs twice", start)
        places[name] = _read_place(cursor, name, start)
    return list(places.values())


def _read_place(cursor: Cursor, name: str, start: int) -> _Place:
    what = f"the description of tensor {name[:80]!r}"
    n_dims: int = cursor.number("<I", what)
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.fail(f"{what} has {n_dims} dimensions; 1 to {MAX_DIMS} are read", start)
    # The file lists the fastest-varying dimension first, numpy last.
    shape = tuple(cursor.number("<Q", what) for _ in range(n_dims))[::-1]
    ggml_id: int = cursor.number("<I", what)
    offset: int = cursor.number("<Q", what)
    if 0 in shape:
        raise cursor.fail(f"{what} has an empty dimension: {shape}", start)
    try:
        fmt = by_id(ggml_id)
        n_bytes = fmt.row_bytes(shape[-1])
    except ValueError as error:
        raise cursor.fail(f"{what} cannot be read: {error}", start) from None
    for dim in shape[:-1]:
        n_bytes *= dim
    return _Place(name, shape, fmt, offset, n_bytes, start)


def _check_places(cursor: Cursor, places: list[_Place], data_start: int, alignment: int) -> None:
    free_from, last = 0, ""
    for place in sorted(places, key=lambda p: (p.offset, p.n_bytes)):
        name = place.name[:80]
        if place.offset % alignment:
            raise cursor.fail(
                f"tensor {name!r} at data offset {place.offset} is not aligned to {alignment} bytes",
                place.said_at,
            )
        if data_start + place.offset + place.n_bytes > cursor.size:
            raise cursor.fail(
                f"tensor {name!r} needs {place.n_bytes} bytes from {data_start + place.offset}, "
                f"but the file has {cursor.size}; download or copy it again",
                place.said_at,
            )
        if place.offset < free_from:
            raise cursor.fail(f"tensors {last!r} and {name!r} overlap", place.said_at)
        free_from, last = place.offset + place.n_bytes, name
