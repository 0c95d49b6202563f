"""Writes one GGUF file: header and descriptions at once, then the tensors in order, piece by piece.

The file appears under its name only when it is complete.
Source: the GGUF specification in ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import struct
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats import Format
from gguf_tools.meta_value import MetaValue, ValueType, scalar, string_bytes
from gguf_tools.metadata import MAX_ENTRIES, MAX_NAME_BYTES, SCALARS
from gguf_tools.output_path import output_path
from gguf_tools.reader import DEFAULT_ALIGNMENT, MAGIC, MAX_ALIGNMENT, MAX_DIMS

VERSION: Final = 3
ALIGNMENT_KEY: Final = "general.alignment"


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor that will be written.

    Shapes: shape in numpy order (rows, cols).
    Raises: ValueError when a file cannot hold such a tensor.
    """

    name: str
    shape: tuple[int, ...]
    format: Format

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= MAX_DIMS or min(self.shape) < 1:
            raise ValueError(
                f"tensor {self.name[:80]!r} has the shape {self.shape}; GGUF stores 1 to {MAX_DIMS} "
                "dimensions, none of them empty"
            )
        try:
            self.format.row_bytes(self.shape[-1])
        except ValueError as error:
            raise ValueError(f"tensor {self.name[:80]!r} cannot be stored: {error}") from None

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor's data, padding not counted."""
        return math.prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])


class GGUFWriter:
    """A GGUF file being written; use as a context manager and write every planned tensor in order.

    The data goes to a temporary file in the same directory, which takes the name `path` when the
    context ends without an error and is removed otherwise.
    Raises: ValueError for a plan that no file can hold, for data that do not follow the plan, and for a
        directory that is missing or has too little room; OSError when it cannot be written.
    """

    __slots__ = ("__weakref__", "_file", "_next", "_partial", "_remove", "alignment", "path", "tensors")

    def __init__(
        self,
        path: str | Path,
        metadata: Mapping[str, MetaValue],
        tensors: Sequence[TensorPlan],
        alignment: int | None = None,
    ) -> None:
        # A link keeps pointing at its target, which is replaced.
        self.path = output_path(path)
        self.tensors = tuple(tensors)
        self.alignment = _agreed_alignment(metadata, alignment)
        if self.alignment != DEFAULT_ALIGNMENT and ALIGNMENT_KEY not in metadata:
            metadata = {**metadata, ALIGNMENT_KEY: scalar(ValueType.UINT32, self.alignment)}
        _check_names(metadata, "metadata keys")
        _check_names([plan.name for plan in self.tensors], "tensors")
        self._next = 0
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"{path}: not a regular file; give the name of the file to write")
        head = self._head(metadata)
        self._check_room(sum(map(len, head)))
        self._partial = self.path.with_name(f"{self.path.name[:200]}.{secrets.token_hex(4)}.part")
        # also where Ctrl-C comes before the context has begun
        self._remove = weakref.finalize(self, self._partial.unlink, missing_ok=True)
        self._file: BinaryIO = self._partial.open("xb")
        try:
            for piece in head:
                self._file.write(piece)
            self._pad()
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def write_tensor(self, name: str, data: NDArray[Any] | Iterable[NDArray[Any]]) -> None:
        """Writes the next tensor of the plan: its stored rows (uint8), whole or as pieces in order.

        Raises: ValueError when it is not this tensor's turn or the size is not the planned one.
        """
        if self._next == len(self.tensors) or self.tensors[self._next].name != name:
            due = self.tensors[self._next].name if self._next < len(self.tensors) else "none"
            raise ValueError(
                f"tensor {name[:80]!r} is out of order; the next one of the plan is {due[:80]!r}"
            )
        plan = self.tensors[self._next]
        written = 0
        for piece in [data] if isinstance(data, np.ndarray) else data:
            if piece.dtype != np.uint8:
                raise ValueError(
                    f"tensor {name[:80]!r} is given as {piece.dtype}; give its stored bytes, uint8"
                )
            written += piece.nbytes
            if written > plan.n_bytes:
                break
            self._file.write(np.ascontiguousarray(piece).reshape(-1).data)
        if written != plan.n_bytes:
            less_or_more = "at least " if written > plan.n_bytes else ""
            raise ValueError(
                f"tensor {name[:80]!r} got {less_or_more}{written} bytes; {plan.format.name} of shape "
                f"{plan.shape} takes {plan.n_bytes}"
            )
        self._pad()
        self._next += 1

    def _head(self, metadata: Mapping[str, MetaValue]) -> list[bytes | memoryview]:
        head: list[bytes | memoryview] = [
            MAGIC + struct.pack("<IQQ", VERSION, len(self.tensors), len(metadata))
        ]
        for key, value in metadata.items():
            head += [string_bytes(key) + struct.pack("<I", value.type), value.stored]
        offset = 0
        for plan in self.tensors:
            n_dims = len(plan.shape)
            # The file lists the fastest-varying dimension first, numpy last.
            head.append(
                string_bytes(plan.name)
                + struct.pack(f"<I{n_dims}QIQ", n_dims, *reversed(plan.shape), plan.format.ggml_id, offset)
            )
            offset += padded(plan.n_bytes, self.alignment)
        return head

    def _check_room(self, head_bytes: int) -> None:
        n_bytes = head_bytes + sum(padded(plan.n_bytes, self.alignment) for plan in self.tensors)
        free = shutil.disk_usage(self.path.parent).free
        if n_bytes > free:
            raise ValueError(
                f"{self.path}: {n_bytes} bytes are needed, {free} are free in this directory; make room first"
            )

    def _pad(self) -> None:
        self._file.write(bytes(-self._file.tell() % self.alignment))

    def _finish(self) -> None:
        if self._next != len(self.tensors):
            raise ValueError(
                f"{self.path}: {self._next} of {len(self.tensors)} tensors were written; write all of them"
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self.path)

    def _discard(self) -> None:
        self._file.close()
        self._remove()


def padded(n_bytes: int, alignment: int) -> int:
    """n_bytes rounded up to a multiple of alignment."""
    return -(-n_bytes // alignment) * alignment


def _agreed_alignment(metadata: Mapping[str, MetaValue], alignment: int | None) -> int:
    """The alignment asked for, or the one the metadata announce; both must be the same."""
    announced = None
    if ALIGNMENT_KEY in metadata:
        value = metadata[ALIGNMENT_KEY]
        if value.type not in SCALARS or value.type in (ValueType.FLOAT32, ValueType.FLOAT64, ValueType.BOOL):
            raise ValueError(f"{ALIGNMENT_KEY} has the type {value.type.name}; it must be UINT32")
        announced = struct.unpack(SCALARS[value.type][0], value.stored)[0]
    agreed: int = next((a for a in (alignment, announced) if a is not None), DEFAULT_ALIGNMENT)
    if announced not in (None, agreed):
        raise ValueError(f"{ALIGNMENT_KEY} says {announced}, but {agreed} is asked for; make both the same")
    if not 8 <= agreed <= MAX_ALIGNMENT or agreed & (agreed - 1):
        raise ValueError(f"the alignment {agreed} is not a power of two from 8 to {MAX_ALIGNMENT}")
    return agreed


def _check_names(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the name {name[:80]!r} occurs twice among the {what}; give each its own")
        if len(name.encode("utf-8")) > MAX_NAME_BYTES:
            raise ValueError(f"{name[:80]!r}... among the {what} is longer than {MAX_NAME_BYTES} bytes")
        seen.add(name)
    if len(seen) > MAX_ENTRIES:
        raise ValueError(f"{len(seen)} {what} are over the limit of {MAX_ENTRIES} of one file")
