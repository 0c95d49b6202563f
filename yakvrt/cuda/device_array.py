"""Arrays in device memory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .driver import call
from .memory import DeviceMemory
from .stream import Stream


class DeviceArray:
    """Numbers in device memory, contiguous, which hold anything at first; kernels take it for a pointer."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        """Raises: DeviceError."""
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._memory, self._first_byte = DeviceMemory(self.nbytes), 0

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def address(self) -> int:
        return self._memory.address + self._first_byte

    def put(self, values: np.ndarray, stream: Stream) -> None:
        """Copies values to the beginning, and waits until they are there."""
        held = np.ascontiguousarray(values, self.dtype)  # until it is copied
        self.upload(held, stream)
        stream.synchronise()

    def upload(self, values: np.ndarray, stream: Stream) -> None:
        """Asks for the same of values that stay as they are until it is done."""
        self._memory.upload(values, stream, self._first_byte)

    def download(self, first: int, out: np.ndarray, stream: Stream) -> None:
        """Asks for rows first, first + 1, ... Shapes: out [n, ...]."""
        self._memory.download(out, stream, self._first_byte + first * self._row_bytes)

    def clear(self, stream: Stream) -> None:
        """Asks for zeros."""
        call("cuMemsetD8Async", self.address, 0, self.nbytes, stream.handle)

    def copy_rows(self, at: int, other: DeviceArray, first: int, n: int, stream: Stream) -> None:
        """Asks for rows first, first + 1, ... of another array of such rows at rows at, at + 1, ..."""
        source = other.part(first, n)
        self._memory.copy_from(source.address, source.nbytes, stream, self._first_byte + at * self._row_bytes)

    def get(self, n_rows: int, stream: Stream) -> np.ndarray:
        """The first rows, once the stream has come so far."""
        out: np.ndarray = np.empty((n_rows, *self.shape[1:]), self.dtype)
        self.download(0, out, stream)
        stream.synchronise()
        return out

    def reshaped(self, shape: tuple[int, ...]) -> DeviceArray:
        """The same memory, at least as long, under another shape."""
        return self._view(shape, 0)

    def part(self, first: int, n: int) -> DeviceArray:
        """Rows first to first + n - 1, in the same memory."""
        if not 0 <= first <= first + n <= len(self):
            raise IndexError(f"rows {first} to {first + n - 1} of {len(self)}")
        return self._view((n, *self.shape[1:]), first * self._row_bytes)

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def _view(self, shape: tuple[int, ...], first_byte: int) -> DeviceArray:
        other = object.__new__(DeviceArray)
        other.shape, other.dtype, other._memory = shape, self.dtype, self._memory
        other._first_byte = self._first_byte + first_byte
        return other

    def free(self) -> None:
        self._memory.free()
