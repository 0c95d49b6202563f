"""Host memory for KV rows, which may take most of a machine: pinned in chunks, with progress."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import numpy as np

from ..free_memory import available_memory
from .device import Device
from .driver import DeviceError, DeviceLost, call
from .memory import PinnedMemory

# A call of the driver takes time for every page (others count 0.1 s a GB of small ones), during which Ctrl-C
# waits and the process's memory map is held, and refuses 512 GiB: 1 GiB is short, and few calls for a TB.
CHUNK_BYTES = 1 << 30
HUGE_PAGE = 2 << 20
PIECE_BYTES = 64 << 20  # that a thread touches at a time
MOST_THREADS = 8
PART_ALIGNMENT = 256  # bytes
PORTABLE_MAPPED = 1 | 2  # of cuMemHostRegister: pinned for all contexts, and mapped
REMEDY = "free some memory, raise the control group's limit, or take a smaller context or fewer slots"

Progress = Callable[[int, int], None]  # MiB that are pinned, MiB to pin


def padded_bytes(parts: Sequence[int]) -> int:
    """What parts of these sizes take of a pool."""
    return sum(-(-n // PART_ALIGNMENT) * PART_ALIGNMENT for n in parts)


class PinnedPool:
    """Memory in one range of addresses, the same for the host and for kernels, handed out in parts.

    Copies that the driver is asked for must not cross the end of a chunk; the host and kernels may. Where a
    device knows registered memory by other addresses, the driver allocates all of it at once.
    """

    def __init__(self, device: Device, n_bytes: int, progress: Progress | None = None) -> None:
        """Raises: DeviceError naming how much of it could be pinned; nothing is pinned then."""
        self._taken, self._n_bytes = 0, n_bytes
        self._chunks: list[int] = []
        self._mapping: mmap.mmap | None = None
        self._allocated: PinnedMemory | None = None
        if not device.reads_registered:
            self._allocated = PinnedMemory(n_bytes)
            self._address = self._allocated.address
            return
        try:
            self._address = self._reserve()
            self._pin(progress)
        except BaseException:
            self.free()
            raise

    def _reserve(self) -> int:
        """Addresses, from a huge page's first on."""
        try:
            mapping = mmap.mmap(-1, self._n_bytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise self._refused(0, os.strerror(error.errno or 0)) from None
        self._mapping = mapping
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # of a system without
                mapping.madvise(mmap.MADV_HUGEPAGE)
        if hasattr(mmap, "MADV_DONTFORK"):  # a child's page is a copy, and ours may become the copy
            mapping.madvise(mmap.MADV_DONTFORK)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        return address + -address % HUGE_PAGE

    def _pin(self, progress: Progress | None) -> None:
        total = -(-self._n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        for first in range(0, total, CHUNK_BYTES):
            n_bytes, free = min(CHUNK_BYTES, total - first), available_memory()
            if n_bytes > free:  # the system would not refuse, but end the process
                raise self._refused(first, f"{free / 1e9:.2f} GB more are free")
            _touch(self._address + first, n_bytes)
            # noted first: Ctrl-C is raised when the driver has come back, and before its answer is seen
            self._chunks.append(self._address + first)
            try:
                call("cuMemHostRegister", self._chunks[-1], n_bytes, PORTABLE_MAPPED)
            except DeviceError as error:
                self._chunks.pop()
                if isinstance(error, DeviceLost):
                    raise
                raise self._refused(first, str(error)) from None
            if progress:
                progress((first + n_bytes) >> 20, total >> 20)

    def _refused(self, n_pinned: int, why: str) -> DeviceError:
        pinned, wanted = n_pinned / 1e9, self._n_bytes / 1e9
        return DeviceError(
            f"{pinned:.2f} of {wanted:.2f} GB of host memory for KV rows could be pinned ({why}): {REMEDY}"
        )

    def take(self, n_bytes: int) -> PinnedMemory:
        """The next part, which is given back with the pool."""
        first, self._taken = self._taken, self._taken + padded_bytes([n_bytes])
        if self._taken > self._n_bytes:
            raise ValueError(f"{self._taken} bytes do not fit into a pool of {self._n_bytes}")
        return PinnedMemory.within(self._address + first, n_bytes)

    def free(self) -> None:
        """No part may be used from then on."""
        with ExitStack() as rest:  # goes on behind whatever fails
            if self._mapping:
                rest.callback(self._mapping.close)
                self._mapping = None
            if self._allocated:
                rest.callback(self._allocated.free)
                self._allocated = None
            while self._chunks:
                rest.callback(_unregister, self._chunks.pop())


def _touch(address: int, n_bytes: int) -> None:
    """Has the system find the pages, which it does faster for several threads than the driver's call does."""
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))

    def touch(first: int) -> None:
        memory[first : first + PIECE_BYTES : mmap.PAGESIZE] = 0

    with ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0)))) as threads:
        list(threads.map(touch, range(0, n_bytes, PIECE_BYTES)))


def _unregister(address: int) -> None:
    """Also of a chunk whose registering was interrupted."""
    try:
        call("cuMemHostUnregister", address)
    except DeviceError as error:
        if "NOT_REGISTERED" not in str(error):
            raise
