"""A tensor in pieces, so that no verb holds more than a piece of a model in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_tools.dequantize import dequantize
from gguf_tools.formats import Format
from gguf_tools.reader import Tensor

STORED_BYTES: Final = 1 << 26
# Values decoded at a time: the float64 temporaries of a comparison stay near the caches.
DECODED_LEN: Final = 1 << 16
# Types whose values float32 would round: taken as they are.
_WIDE: Final = frozenset({"F64", "I8", "I16", "I32", "I64"})


class Stored(Protocol):
    """A tensor of any file format in stored form, rows and names as GGUF has them.

    Shapes: shape in numpy order; data uint8, shape[:-1] + (row_bytes,).
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, slowest-varying first."""

    @property
    def format(self) -> Format:
        """The block layout of the data."""

    @property
    def data(self) -> NDArray[np.uint8]:
        """The rows as stored."""

    def release(self) -> None:
        """Lets the kernel drop the tensor's pages from memory."""


def blocks(tensor: Stored) -> NDArray[np.uint8]:
    """All blocks of a tensor in file order, without copying.

    Shapes: -> (n_blocks, block_bytes).
    """
    return tensor.data.reshape(-1, tensor.format.block_bytes)


def stored_chunks(tensor: Tensor, n_bytes: int = STORED_BYTES) -> Iterator[NDArray[np.uint8]]:
    """The stored bytes in runs of whole blocks of at most n_bytes; the pages go when all are through.

    Shapes: each (n_blocks, block_bytes).
    """
    every = blocks(tensor)
    step = max(1, n_bytes // tensor.format.block_bytes)
    for start in range(0, len(every), step):
        yield every[start : start + step]
    tensor.release()


def decoded(
    some: NDArray[np.uint8], fmt: Format, *, compiled: bool = False, room: NDArray[np.float32] | None = None
) -> NDArray[np.floating[Any]]:
    """Blocks as a flat run of numbers: float32, or float64 for the types that float32 would round.

    `compiled` as for dequantize; float32 goes into the start of `room` where that is given.
    Raises: ValueError for a type that cannot be decoded here.
    """
    if fmt.name in _WIDE:
        return np.ascontiguousarray(some).reshape(-1).view(fmt.block)["x"].reshape(-1).astype(np.float64)
    out = None if room is None else room[: len(some) * fmt.block_len].reshape(len(some), fmt.block_len)
    return dequantize(some, fmt.name, out=out, compiled=compiled).reshape(-1)
