"""Memory as an emulated CUDA kernel sees it: pointers with bounds, races in shared memory found.

Device memory wraps numpy arrays. Shared and local arrays start as poison: NaN, or bytes that are no likely
number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

NUMBERS = {
    "u8": np.uint8,
    "u16": np.uint16,
    "u32": np.uint32,
    "u64": np.uint64,
    "i32": np.int32,
    "i64": np.int64,
    "f32": np.float32,
}
POISON = 0xCD
# instead of a thread's number in a stamp
SEVERAL, ATOMIC = -1, -2

# (block's barriers passed, thread, warp, warp's barriers passed, thread's fences passed): when an element was
# touched, and by whom
Stamp = tuple[int, int, int, int, int]


class EmulationError(AssertionError):
    """The kernel does what a GPU forbids or leaves undefined."""


class Running:
    """The thread that runs now; the scheduler sets it."""

    thread: Any = None


def unordered(old: Stamp | None, new: Stamp) -> bool:
    """Whether no barrier lies between two touches of different threads."""
    if old is None or old is new or old[0] != new[0] or old[1] == new[1]:
        return False
    return old[2] != new[2] or old[3] == new[3]


def wrapped(value: Any, bits: int, signed: bool) -> int:
    """The value as a C cast stores it."""
    half = 1 << (bits - 1) if signed else 0
    return ((int(value) + half) & ((1 << bits) - 1)) - half


def poison(array: np.ndarray) -> np.ndarray:
    array.view(np.uint8)[:] = 0xFF if array.dtype.kind == "f" else POISON
    return array


class Memory:
    """One array; `watched` where threads share it within a block. `origin`: bytes that its first element lies
    behind a multiple of 16. `guard` is told of every element that a thread reads or writes, where copies and
    products that run beside the threads may use it (cuda_emulated_async.py).
    """

    def __init__(self, name: str, array: np.ndarray, watched: bool = False, origin: int = 0) -> None:
        self.name, self.array, self.origin = name, array, origin
        self.size, self.item_bytes = array.size, array.itemsize
        self.is_float = array.dtype.kind == "f"
        # gives Python's integers, several times as fast as numpy gives its own
        self.elements: Any = array if self.is_float else memoryview(array)
        self.mask = (1 << 8 * array.itemsize) - 1
        self.half = self.mask // 2 + 1 if array.dtype.kind == "i" else 0
        self.written: list[Stamp | None] | None = [None] * array.size if watched else None
        self.read: list[Stamp | None] = [None] * array.size if watched else []
        self.guard: Callable[[int, bool], None] | None = None

    def note_read(self, first: int, n: int = 1) -> None:
        written, read, guard = self.written, self.read, self.guard
        assert written is not None
        now = Running.thread.stamp
        barriers, number, warp, passed, _ = now
        for i in range(first, first + n):
            if guard is not None:
                guard(i, False)
            old = written[i]
            if old is not None and old[0] == barriers and unordered(old, now):
                raise Running.thread.error(
                    f"reads {self.name}[{i}], which another thread wrote since the barrier"
                )
            old = read[i]
            if old is None or old[0] != barriers or old[1] == number:
                read[i] = now
            elif old[1] != SEVERAL or (old[2] >= 0 and (old[2], old[3]) != (warp, passed)):
                same = (warp, passed) if old[2] == warp else (-1, -1)
                read[i] = (barriers, SEVERAL, *same, 0)

    def note_write(self, i: int, changes: bool = True) -> None:
        """Several threads may write the same value."""
        assert self.written is not None
        now = Running.thread.stamp
        if self.guard is not None:
            self.guard(i, True)
        if changes and unordered(self.written[i], now):
            raise Running.thread.error(
                f"writes {self.name}[{i}], which another thread wrote since the barrier"
            )
        if changes and unordered(self.read[i], now):
            raise Running.thread.error(
                f"writes {self.name}[{i}], which another thread read since the barrier"
            )
        self.written[i] = now

    def note_atomic(self, i: int) -> None:
        assert self.written is not None
        now = Running.thread.stamp
        for old in (self.written[i], self.read[i]):
            if old is not None and old[1] != ATOMIC and unordered(old, now):
                raise Running.thread.error(f"adds to {self.name}[{i}], which others use since the barrier")
        self.written[i] = (now[0], ATOMIC, -1, -1, 0)


class Pointer:
    """The address of one element; what lies before the array or behind it cannot be reached."""

    __slots__ = ("memory", "offset")

    def __init__(self, memory: Memory, offset: int = 0) -> None:
        self.memory, self.offset = memory, offset

    def place(self, index: Any, n: int = 1) -> int:
        """The number of an element, n of which are used."""
        at = self.offset + index
        size = self.memory.size
        if at < 0 or at + n > size:
            what = f"element {at}" if n == 1 else f"elements {at} to {at + n - 1}"
            raise Running.thread.error(f"reaches {what} of {self.memory.name}, which has {size}")
        return int(at)

    def __getitem__(self, index: Any) -> Any:
        memory, at = self.memory, self.offset + index
        if not 0 <= at < memory.size:
            self.place(index)
        if memory.written is not None:
            memory.note_read(at)
        return memory.elements[at]

    def __setitem__(self, index: Any, value: Any) -> None:
        memory, at = self.memory, self.offset + index
        if not 0 <= at < memory.size:
            self.place(index)
        if not memory.is_float:
            value = ((int(value) + memory.half) & memory.mask) - memory.half
        if memory.written is not None:
            memory.note_write(at, changes=bool(memory.elements[at] != value))
        memory.elements[at] = value

    def wide(self, index: Any, n_bytes: int = 16) -> tuple[int, int]:
        """First element and number of elements of that many bytes."""
        memory = self.memory
        n = n_bytes // memory.item_bytes
        at = self.place(index, n)
        if (byte := memory.origin + at * memory.item_bytes) % n_bytes:
            raise Running.thread.error(f"reaches {n_bytes} bytes at byte {byte} of {memory.name}")
        return at, n

    def read16(self, index: Any, n_bytes: int = 16) -> np.ndarray:
        """The 16 bytes at a multiple of 16, or as many as `n_bytes` says: copy what is to stay as it is."""
        memory = self.memory
        at, n = self.wide(index, n_bytes)
        if memory.written is not None:
            memory.note_read(at, n)
        return memory.array[at : at + n]

    def write16(self, index: Any, data: np.ndarray) -> None:
        at, n = self.wide(index)
        if self.memory.written is not None:
            for i in range(at, at + n):
                self.memory.note_write(i)
        self.memory.array[at : at + n].view(np.uint8)[:] = data.view(np.uint8)


class Null:
    """The address 0."""

    def __getitem__(self, index: Any) -> Any:
        raise Running.thread.error("reads at the address 0")

    def __setitem__(self, index: Any, value: Any) -> None:
        raise Running.thread.error("writes at the address 0")

    def place(self, *_: Any) -> Any:
        raise Running.thread.error("reaches the address 0")

    wide = read16 = write16 = place
