"""Memory on both sides of a link, of several kinds, and comparing what a transfer left in it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

import numpy as np

from yakvrt.cuda.driver import DeviceError, call
from yakvrt.cuda.memory import PORTABLE_MAPPED, DeviceMemory, PinnedMemory
from yakvrt.cuda.stream import Stream
from yakvrt.transfer.memory import POISON, fill, mapped, pattern

MEMORIES = {
    "pinned": "the driver allocates it",
    "pageable": "small pages that nothing holds",
    "registered": "small pages, then registered",
    "registered-huge": "huge pages, then registered",
    "write-combined": "the driver allocates it, the host's caches do not hold it; to the GPU alone",
}
CHECKED_BYTES = 32 << 20  # compared at once
SLACK = 4096  # bytes behind a target that must stay as they are


class HostBuffer:
    """Host memory of one of MEMORIES, filled as a source is: `array` uint8 [n_bytes]. Owns: the memory."""

    def __init__(self, kind: str, n_bytes: int) -> None:
        """Raises: DeviceError, OSError where there is too little."""
        self._pinned: PinnedMemory | None = None
        self._registered = 0
        if kind in ("pinned", "write-combined"):
            self._pinned = PinnedMemory(n_bytes, write_combined=kind == "write-combined")
            self.array = self._pinned.array
        else:
            whole = -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            memory = mapped("huge" if kind == "registered-huge" else "small", whole)
            memory[:: mmap.PAGESIZE] = 0
            if kind != "pageable":
                self._registered = memory.ctypes.data  # noted first, as a PinnedPool does
                try:
                    call("cuMemHostRegister", self._registered, whole, PORTABLE_MAPPED)
                except BaseException as error:
                    if isinstance(error, DeviceError):
                        self._registered = 0
                    self.free()
                    raise
            self.array = memory[:n_bytes]
        fill(self.array)

    @property
    def address(self) -> int:
        return self.array.ctypes.data

    def free(self) -> None:
        """No array over the memory may be used from then on."""
        pinned, self._pinned = self._pinned, None
        registered, self._registered = self._registered, 0
        if pinned:
            pinned.free()
        if registered:
            unregister(registered)


def unregister(address: int) -> None:
    """Also where registering was interrupted before the driver had done it."""
    try:
        call("cuMemHostUnregister", address)
    except DeviceError as error:
        if "NOT_REGISTERED" not in str(error):
            raise


@contextmanager
def on_cpus(cpus: Collection[int]) -> Iterator[None]:
    """This thread runs on these CPUs inside, so that pages it takes lie near them; anywhere for none."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)


def fill_device(memory: DeviceMemory, stream: Stream) -> None:
    """As a source on the host is filled."""
    for first in range(0, memory.n_bytes, CHECKED_BYTES):
        n = min(CHECKED_BYTES, memory.n_bytes - first)
        words = pattern(first // 8, (first + n) // 8 + 1)
        memory.upload(words.view(np.uint8)[:n], stream, first)
        stream.synchronise()


def poison_device(memory: DeviceMemory, n_bytes: int, stream: Stream) -> None:
    """The first bytes and what lies behind them."""
    call("cuMemsetD8Async", memory.address, POISON, n_bytes + SLACK, stream.handle)


def compare(
    what: str, n_bytes: int, found: Callable[[int, int], np.ndarray], truth: Callable[[int, int], np.ndarray]
) -> int:
    """Compares the bytes of a target, found(first, last) with truth(first, last), and returns how many.

    Raises: RuntimeError when they differ.
    """
    for first in range(0, n_bytes, CHECKED_BYTES):
        last = min(first + CHECKED_BYTES, n_bytes)
        if not np.array_equal(found(first, last), truth(first, last)):
            raise RuntimeError(
                f"{what} left wrong bytes between {first} and {last}: this is a bug of yakvrt's or the "
                "driver's, or the memory is faulty"
            )
    return n_bytes


def compare_device(
    what: str,
    n_bytes: int,
    memory: DeviceMemory,
    stream: Stream,
    truth: Callable[[int, int], np.ndarray],
) -> int:
    """Of a target on the device, which was poisoned; also that nothing was written behind it.

    Raises: RuntimeError.
    """

    def found(first: int, last: int) -> np.ndarray:
        held = np.empty(last - first, np.uint8)
        memory.download(held, stream, first)
        stream.synchronise()
        return held

    if not (found(n_bytes, n_bytes + SLACK) == POISON).all():
        raise RuntimeError(f"{what} wrote behind its {n_bytes} bytes: this is a bug")
    return compare(what, n_bytes, found, truth)


def source_bytes(first: int, last: int) -> np.ndarray:
    """Bytes first .. last - 1 of a source."""
    start = first // 8
    return pattern(start, -(-last // 8)).view(np.uint8)[first - start * 8 : last - start * 8]
