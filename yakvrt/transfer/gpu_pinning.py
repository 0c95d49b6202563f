"""What pinning host memory takes: finding pages, registering them, allocating pinned ones, giving back."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from yakvrt.cuda.driver import call
from yakvrt.cuda.memory import PORTABLE_MAPPED, PinnedMemory
from yakvrt.transfer.gpu_case import DeviceCase
from yakvrt.transfer.gpu_clock import HOST, Sampled
from yakvrt.transfer.gpu_memory import unregister
from yakvrt.transfer.memory import mapped

PINNINGS = {
    "touch": "the first write to every page",
    "register": "registering pages that were touched",
    "unregister": "giving them back",
    "allocate": "pinned memory of the driver's",
    "free": "giving it back",
}


class Pinning:
    """Memory that lasts for one sample."""

    def __init__(self, n_samples: int) -> None:
        self._n_samples = n_samples

    def time(self, case: DeviceCase) -> Sampled:
        """By the host's clock; nothing is moved, so no bytes are compared. Raises: DeviceError, OSError."""
        once = _allocated if case.method in ("allocate", "free") else _registered
        once(case)  # warms up
        return Sampled(tuple(once(case) for _ in range(self._n_samples)), 1, HOST, False, 0)


def _registered(case: DeviceCase) -> float:
    memory = mapped("huge" if case.memory == "registered-huge" else "small", case.row_bytes)
    address = memory.ctypes.data
    spent = {"touch": _ns(lambda: _touch(memory, case.n_threads))}
    if case.method == "touch":
        return spent["touch"]
    try:
        spent["register"] = _ns(lambda: call("cuMemHostRegister", address, case.row_bytes, PORTABLE_MAPPED))
    finally:
        spent["unregister"] = _ns(lambda: unregister(address))
    return spent[case.method]


def _allocated(case: DeviceCase) -> float:
    began = time.perf_counter_ns()
    memory = PinnedMemory(case.row_bytes)
    allocated = float(time.perf_counter_ns() - began)
    freed = _ns(memory.free)
    return allocated if case.method == "allocate" else freed


def _touch(memory: np.ndarray, n_threads: int) -> None:
    parts = [
        slice(len(memory) * i // n_threads, len(memory) * (i + 1) // n_threads) for i in range(n_threads)
    ]

    def write(part: slice) -> None:
        memory[part][:: mmap.PAGESIZE] = 1

    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(write, parts))


def _ns(work: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    work()
    return float(time.perf_counter_ns() - began)
