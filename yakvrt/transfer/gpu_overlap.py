"""Transfers beside work on the GPU, or copies to the host, where a cache appends rows: how much of both
runs at once, and what the work pays for it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from yakvrt.cuda.device import Device
from yakvrt.cuda.device_array import DeviceArray
from yakvrt.cuda.device_kernels import Kernels
from yakvrt.cuda.driver import call
from yakvrt.cuda.memory import DeviceMemory, PinnedMemory
from yakvrt.kernel_build.spec import kernel
from yakvrt.transfer.gpu_case import DeviceCase
from yakvrt.transfer.gpu_clock import MOST_GATED, DeviceClock, Operation, Sampled
from yakvrt.transfer.gpu_memory import SLACK, compare, compare_device, poison_device, source_bytes
from yakvrt.transfer.gpu_rows import Rows
from yakvrt.transfer.memory import POISON

TIMES = 4096  # multiplications and additions of a launch of arithmetic: some microseconds
FILLER_BYTES = 32 << 20  # that memory work moves within the GPU, or to the host, at a time
FILLER_ROW = 4096  # bytes
BLOCKS = 4  # for each multiprocessor, which leaves room for as many of a gather
FILLED = 0.8  # of a transfer's time: it is under way all the while that the work runs
MOST_FILLERS = MOST_GATED - 16


class Overlap:
    """Rows, and work for the multiprocessors. Owns: the work's memory, in `held`."""

    def __init__(
        self,
        held: ExitStack,
        device: Device,
        kernels: Kernels,
        clock: DeviceClock,
        rows: Rows,
        cases: Sequence[DeviceCase],
    ) -> None:
        """Raises: DeviceError."""
        self._clock, self._rows = clock, rows
        grid = BLOCKS * device.n_multiprocessors
        self._back = DeviceMemory(max(case.n_bytes for case in cases) + SLACK)
        held.callback(self._back.free)
        numbers = DeviceArray((256 * grid,), np.float32)
        held.callback(numbers.free)
        numbers.clear(clock.stream)
        arithmetic = kernels.load(kernel("multiply_adds", "multiply_adds_cuda"))
        times = arithmetic.arguments(numbers, TIMES)
        n_rows = FILLER_BYTES // FILLER_ROW
        ids, ends = DeviceArray((n_rows,), np.int32), DeviceArray((2, FILLER_BYTES), np.uint8)
        held.callback(ids.free)
        held.callback(ends.free)
        ids.put(np.arange(n_rows), clock.stream)
        appended = PinnedMemory(FILLER_BYTES)
        held.callback(appended.free)
        append = appended.address, ends.address, FILLER_BYTES, clock.side.handle
        move = kernels.load(kernel("gather_rows", "gather_rows_cuda", 4))
        moved = move.arguments(ends.part(0, 1), ends.part(1, 1), ids, n_rows, FILLER_ROW // 16)
        self._fillers: dict[str, Callable[[], None]] = {
            "arithmetic": lambda: arithmetic.launch(clock.side, grid, times),
            "memory": lambda: move.launch(clock.side, grid, moved),
            "copy-d2h": lambda: call("cuMemcpyDtoHAsync", *append),
        }

    def time(self, case: DeviceCase) -> Sampled:
        """Of transfer and work together; beside it the medians of each alone, and of the work meanwhile.

        Raises: DeviceError, RuntimeError for wrong bytes.
        """
        clock, filler = self._clock, self._fillers[case.beside]
        transfer = self._transfer(case)
        alone = clock.time(transfer)
        alone_ns = statistics.median(alone.samples_ns)
        self._work_ns(filler, 1, gated=False)  # as DeviceClock warms up
        one_ns = min(self._work_ns(filler, 1, clock.gate.works) for _ in range(3))
        n = max(1, min(MOST_FILLERS, int(FILLED * alone_ns / max(one_ns, 1.0))))
        work_ns = statistics.median(
            self._work_ns(filler, n, clock.gate.works) for _ in range(clock.n_samples)
        )
        together, meanwhile = [], []
        for _ in range(clock.n_samples):
            with clock.between_events(clock.gate.works, beside=True):
                for _ in range(n):
                    filler()
                transfer.ask()
            together.append(clock.end.ms_since(clock.start) * 1e6)
            meanwhile.append(clock.side_end.ms_since(clock.start) * 1e6)
        more = {
            "transfer_alone_ns": alone_ns,
            "work_alone_ns": work_ns,
            "work_beside_ns": statistics.median(meanwhile),
        }
        return replace(
            alone,
            samples_ns=tuple(together),
            n_loops=1,
            verified_bytes=transfer.check(),
            more_ns=tuple(more.items()),
        )

    def _work_ns(self, filler: Callable[[], None], n: int, gated: bool) -> float:
        """Of n launches on the side stream, with nothing beside them."""
        clock = self._clock
        with clock.between_events(gated, beside=True):
            for _ in range(n):
                filler()
        return clock.side_end.ms_since(clock.start) * 1e6

    def _transfer(self, case: DeviceCase) -> Operation:
        """On the main stream."""
        if case.method == "zero-copy":
            return self._rows.operation(case)
        rows, stream, n = self._rows, self._clock.stream, case.n_bytes
        if case.direction == "h2d":
            poison_device(rows.out, n, stream)
            return Operation(
                lambda: call("cuMemcpyHtoDAsync", rows.out.address, rows.source.address, n, stream.handle),
                lambda: compare_device(case.name, n, rows.out, stream, source_bytes),
            )
        poison_device(self._back, n, stream)
        target: np.ndarray = rows.source.array[:n]  # holds a source's bytes, which must all have gone

        def check() -> int:
            truth = np.full(min(n, 32 << 20), POISON, np.uint8)
            found = compare(case.name, n, lambda a, b: target[a:b], lambda a, b: truth[: b - a])
            target[:] = source_bytes(0, n)
            return found

        return Operation(
            lambda: call("cuMemcpyDtoHAsync", rows.source.address, self._back.address, n, stream.handle),
            check,
        )
