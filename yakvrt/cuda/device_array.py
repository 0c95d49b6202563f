"""Arrays in device memory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .memory import DeviceMemory
from .stream import Stream


class DeviceArray:
    """Numbers in device memory, contiguous, which hold anything at first; kernels take it for a pointer."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        """Raises: DeviceError."""
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._memory = DeviceMemory(self.nbytes)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def address(self) -> int:
        return self._memory.address

    def put(self, values: np.ndarray, stream: Stream) -> None:
        """Copies values to the beginning, and waits until they are there."""
        self._memory.upload(np.ascontiguousarray(values, self.dtype), stream)
        stream.synchronise()

    def get(self, n_rows: int, stream: Stream) -> np.ndarray:
        """The first rows, once the stream has come so far."""
        out: np.ndarray = np.empty((n_rows, *self.shape[1:]), self.dtype)
        self._memory.download(out, stream)
        stream.synchronise()
        return out

    def reshaped(self, shape: tuple[int, ...]) -> DeviceArray:
        """The same memory, at least as long, under another shape."""
        other = object.__new__(DeviceArray)
        other.shape, other.dtype, other._memory = shape, self.dtype, self._memory
        return other

    def free(self) -> None:
        self._memory.free()
