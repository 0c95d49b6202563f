"""Memory of one step beside its buffers: scratch, constants, and who holds copies of what."""

from __future__ import annotations

import numpy as np

from ..ops import Buffer
from .memory import ROW_FLOATS, aligned_array, padded

LINE_FLOATS = 16
PRIVATE_WIDTH = 2048  # floats that a thread computes for itself sooner than it waits for the others


class StepMemory:
    """Scratch memory is shared by all ops of a step, which run one after another.

    A step of one row would spend its time in barriers. So there every thread computes small values (norms,
    RoPE, packed activations) for itself, in a copy of its own: such a buffer is private until an op writes it
    shared.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._scratch: dict[str, np.ndarray] = {}
        self._numbers: dict[float, np.ndarray] = {}
        self._private: set[int] = set()

    def buffer(self, capacity: int, width: int, n_rows: np.ndarray) -> Buffer:
        """A buffer; one of a single row has room for every thread's copy.

        Rows lie an odd number of cache lines apart: the same columns of many rows then share a cache.
        """
        copies = self.n_threads if capacity == 1 else 1
        floats = padded(width, ROW_FLOATS)
        stride = floats + (LINE_FLOATS if capacity > 1 else 0)
        memory = aligned_array((copies * capacity, stride), np.float32, zeroed=True)
        return Buffer(memory[:capacity, :floats], width, n_rows)

    def is_private_width(self, n_rows: int, width: int) -> bool:
        return n_rows == 1 and self.n_threads > 1 and width <= PRIVATE_WIDTH

    def copy_bytes(self, buffer: Buffer) -> int:
        """Bytes between the threads' copies of a buffer; 0 when it is shared."""
        private = buffer.data.ctypes.data in self._private
        return int(buffer.data.strides[0]) if private else 0

    def write_private(self, out: Buffer, *sources: Buffer) -> int:
        """Makes `out` private where that pays; returns its copy bytes.

        A thread must not overwrite what others still read.
        """
        in_place = any(x.data is out.data and not self.copy_bytes(x) for x in sources)
        if in_place or not self.is_private_width(len(out.data), out.width):
            self.write_shared(out)
        else:
            self._private.add(out.data.ctypes.data)
        return self.copy_bytes(out)

    def write_shared(self, out: Buffer) -> None:
        self._private.discard(out.data.ctypes.data)

    def shared(self, name: str, n_bytes: int) -> np.ndarray:
        """Scratch of at least n_bytes under a name; a larger demand gets new memory."""
        held = self._scratch.get(name)
        if held is None or held.nbytes < n_bytes:
            held = self._scratch[name] = aligned_array((n_bytes,), np.uint8, zeroed=True)
        part: np.ndarray = held[:n_bytes]
        return part

    def number(self, value: float) -> np.ndarray:
        """A float32 the kernels read by address."""
        return self._numbers.setdefault(value, np.array([value], np.float32))
