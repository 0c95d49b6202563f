"""A case of CUDA kernels (tests/cuda_cases) on a GPU: memory, launches, times."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cuda_cases.case import COPY, Case, Launch

from yakvrt.cuda.arguments import Arguments
from yakvrt.cuda.device_kernels import Kernels
from yakvrt.cuda.loaded_kernel import LoadedKernel
from yakvrt.cuda.memory import DeviceMemory, PinnedMemory
from yakvrt.cuda.stream import Event, Stream

CACHE_BYTES = 256 << 20  # several times the second-level cache of any GPU
MOST_SETS = 16
ROUNDS = 5


@dataclass
class Placed:
    """The arrays of a case on the device, by their address on the host: aliases share memory."""

    device: dict[int, DeviceMemory] = field(default_factory=dict)
    pinned: dict[int, PinnedMemory] = field(default_factory=dict)

    def __getitem__(self, array: np.ndarray) -> DeviceMemory | PinnedMemory:
        address = array.ctypes.data
        return self.pinned[address] if address in self.pinned else self.device[address]

    def argument(self, value: Any) -> Any:
        return self[value] if isinstance(value, np.ndarray) else value

    def n_bytes(self) -> int:
        return sum(memory.n_bytes for memory in self.device.values())

    def free(self) -> None:
        for memory in [*self.device.values(), *self.pinned.values()]:
            memory.free()


def arrays_of(case: Case) -> list[np.ndarray]:
    """Each memory once, by its longest array."""
    longest: dict[int, np.ndarray] = {}
    for launch in case.launches:
        for value in launch.arguments:
            if isinstance(value, np.ndarray):
                address = value.ctypes.data
                if address not in longest or value.nbytes > longest[address].nbytes:
                    longest[address] = value
    return list(longest.values())


class GpuRun:
    """Runs cases on one stream."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels, self.stream = kernels, Stream()

    def solve(self, case: Case) -> Placed:
        """Runs the launches once and brings their outputs back. The caller frees what is placed."""
        placed = self.place(case)
        try:
            for launch in case.launches:
                loaded, arguments = self.prepare(launch, placed)
                loaded.launch(self.stream, launch.grid, arguments)
            for output in (output for launch in case.launches for output in launch.outputs):
                memory = placed[output]
                assert isinstance(memory, DeviceMemory), "outputs lie on the device"
                memory.download(output, self.stream)
            self.stream.synchronise()
        except BaseException:
            placed.free()
            raise
        return placed

    def place(self, case: Case) -> Placed:
        placed, pinned = Placed(), {array.ctypes.data for array in case.pinned}
        try:
            for array in arrays_of(case):
                address = array.ctypes.data
                if address in pinned:
                    memory = placed.pinned[address] = PinnedMemory(array.nbytes)
                    memory.array[:] = array.reshape(-1).view(np.uint8)
                else:
                    placed.device[address] = DeviceMemory(array.nbytes)
                    placed.device[address].upload(array, self.stream)
            self.stream.synchronise()
        except BaseException:
            placed.free()
            raise
        return placed

    def prepare(self, launch: Launch, placed: Placed) -> tuple[LoadedKernel, Arguments]:
        loaded = self.kernels.load(launch.kernel)
        return loaded, loaded.arguments(*(placed.argument(value) for value in launch.arguments))

    def copies(self, placed: Placed, n: int) -> list[Placed]:
        """The device memory again, so that launches in turn do not find theirs in a cache."""
        made = []
        for _ in range(n):
            copy = Placed(pinned=placed.pinned)
            for address, memory in placed.device.items():
                copy.device[address] = DeviceMemory(memory.n_bytes)
                copy.device[address].copy_from(memory.address, memory.n_bytes, self.stream)
            made.append(copy)
        self.stream.synchronise()
        return made

    def microseconds(self, case: Case, placed: Placed, target_ms: float) -> list[float]:
        """Of every launch, the median of several rounds of about target_ms."""
        cached = any(launch.limit == COPY for launch in case.launches)
        n_sets = min(-(-CACHE_BYTES // max(placed.n_bytes(), 1)), MOST_SETS) if cached else 1
        others = self.copies(placed, n_sets - 1)
        try:
            return [self._time(launch, [placed, *others], target_ms) for launch in case.launches]
        finally:
            for copy in others:
                for memory in copy.device.values():
                    memory.free()

    def _time(self, launch: Launch, sets: list[Placed], target_ms: float) -> float:
        loaded = self.kernels.load(launch.kernel)
        given = [self.prepare(launch, placed)[1] for placed in sets]
        start, end = Event(), Event()

        def milliseconds(n: int) -> float:
            self.stream.record(start)
            for i in range(n):
                loaded.launch(self.stream, launch.grid, given[i % len(given)])
            self.stream.record(end)
            end.synchronise()
            return end.ms_since(start)

        milliseconds(len(given))  # warms up
        first = milliseconds(2)
        n = max(2, min(500, int(target_ms / max(first / 2, 1e-3))))
        times = [milliseconds(n) / n for _ in range(ROUNDS)]
        start.close()
        end.close()
        return statistics.median(times) * 1000
