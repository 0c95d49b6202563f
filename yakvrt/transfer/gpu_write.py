"""Rows of the GPU into pinned host memory, where a cache leaves blocks: by a kernel, or in one copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from yakvrt.cuda.device_array import DeviceArray
from yakvrt.cuda.device_kernels import Kernels
from yakvrt.cuda.driver import call
from yakvrt.cuda.memory import DeviceMemory, PinnedMemory
from yakvrt.kernel_build.spec import kernel
from yakvrt.transfer.gpu_case import DeviceCase
from yakvrt.transfer.gpu_clock import DeviceClock, Operation, Sampled
from yakvrt.transfer.gpu_memory import SLACK, compare, fill_device, source_bytes
from yakvrt.transfer.memory import POISON


class Writes:
    """Rows on the GPU, and a place for them on the host. Owns: both, in `held`."""

    def __init__(
        self, held: ExitStack, kernels: Kernels, clock: DeviceClock, cases: Sequence[DeviceCase]
    ) -> None:
        """Raises: DeviceError."""
        self._clock, self._kernels = clock, kernels
        n_bytes = max(case.n_bytes for case in cases)
        self._source, self._target = DeviceMemory(n_bytes), PinnedMemory(n_bytes + SLACK)
        held.callback(self._source.free)
        held.callback(self._target.free)
        fill_device(self._source, clock.stream)
        n_rows = max(case.n_rows for case in cases)
        self._ids = DeviceArray((n_rows,), np.int32)
        held.callback(self._ids.free)
        self._ids.put(np.arange(n_rows), clock.stream)

    def time(self, case: DeviceCase) -> Sampled:
        """Raises: DeviceError, RuntimeError for wrong bytes."""
        n = case.n_bytes
        target: np.ndarray = self._target.array
        target[:] = POISON

        def check() -> int:
            if not (target[n : n + SLACK] == POISON).all():
                raise RuntimeError(f"{case.name} wrote behind its {n} bytes: this is a bug")
            return compare(case.name, n, lambda first, last: target[first:last], source_bytes)

        return self._clock.time(Operation(self._ask(case), check))

    def _ask(self, case: DeviceCase) -> Callable[[], None]:
        stream, to, source = self._clock.stream, self._target.address, self._source.address
        if case.method == "copy":
            return lambda: call("cuMemcpyDtoHAsync", to, source, case.n_bytes, stream.handle)
        loaded = self._kernels.load(kernel("gather_rows", "gather_rows_cuda", case.loads))
        given = loaded.arguments(self._target, source, self._ids, case.n_rows, case.row_bytes // 16)
        return lambda: loaded.launch(stream, case.grid, given)
