"""What starting things takes: launches, copies, events, graphs, waiting for them, one read of host memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np

from yakvrt.cuda.device_kernels import Kernels
from yakvrt.cuda.driver import call
from yakvrt.cuda.graph import Graph
from yakvrt.cuda.memory import DeviceMemory, PinnedMemory
from yakvrt.cuda.stream import Event
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.pointer_chase import PLACE_BYTES, chain_of, pointer_chase_ref
from yakvrt.transfer.gpu_case import DeviceCase
from yakvrt.transfer.gpu_clock import HOST, DeviceClock, Operation, Sampled
from yakvrt.transfer.gpu_copies import both
from yakvrt.transfer.gpu_memory import SLACK, compare, compare_device, poison_device
from yakvrt.transfer.memory import POISON

LATENCIES = {
    "launch": "an empty kernel behind another",
    "launch-call": "asking for it, of the host",
    "launch-wait": "asking for it until the host sees its end",
    "graph": "an empty kernel in a graph",
    "event": "an event behind another",
    "copy-h2d": "a copy of 16 bytes behind another",
    "copy-d2h": "the same to the host",
    "copy-call": "asking for one, of the host",
    "copy-wait": "asking for one until the host sees its end",
    "read": "one read of pinned memory by a kernel, each telling the next",
}
COPIED_BYTES = 16
GRAPH_LAUNCHES = 64
N_PLACES = 1 << 19  # of the chain: several times a second-level cache
STEPS = 4096


class Latency:
    """Owns: a little memory, a graph and an event, in `held`."""

    def __init__(self, held: ExitStack, kernels: Kernels, clock: DeviceClock) -> None:
        """Raises: DeviceError."""
        self._held, self._kernels, self._clock = held, kernels, clock
        self._pinned, self._memory = PinnedMemory(2 * COPIED_BYTES), DeviceMemory(COPIED_BYTES + SLACK)
        held.callback(self._pinned.free)
        held.callback(self._memory.free)
        self._event = Event()
        held.callback(self._event.close)
        gather = kernels.load(kernel("gather_rows", "gather_rows_cuda", 1))
        arguments = gather.arguments(self._memory, self._pinned, None, 0, 1)
        self._launch = partial(gather.launch, clock.stream, 1, arguments)  # of no rows

    def time(self, case: DeviceCase) -> Sampled:
        """Raises: DeviceError, RuntimeError for wrong bytes or a wrong place."""
        clock, method = self._clock, case.method
        if method == "read":
            return self._read(case)
        if method == "graph":
            return self._graph()
        if method in ("copy-h2d", "copy-call", "copy-wait"):
            return clock.time(self._copy_up(case))
        if method == "copy-d2h":
            return clock.time(self._copy_down(case))
        if method == "event":
            return clock.time(Operation(lambda: self._mark(), nothing))
        return clock.time(self._timed(self._launch, nothing, method))

    def _mark(self) -> None:
        self._clock.stream.record(self._event)

    def _timed(self, ask: Callable[[], None], check: Callable[[], int], method: str) -> Operation:
        """By the GPU's clock, or by the host's until the call comes back, or until all is done."""
        if method.endswith("-wait"):
            return Operation(both(ask, self._clock.stream.synchronise), check, clock=HOST)
        return Operation(ask, check, clock=HOST if method.endswith("-call") else "device")

    def _copy_up(self, case: DeviceCase) -> Operation:
        source, stream = self._pinned.array[:COPIED_BYTES], self._clock.stream
        source[:] = np.arange(COPIED_BYTES)
        poison_device(self._memory, COPIED_BYTES, stream)

        def check() -> int:
            truth = np.arange(COPIED_BYTES, dtype=np.uint8)
            return compare_device(case.name, COPIED_BYTES, self._memory, stream, lambda a, b: truth[a:b])

        return self._timed(lambda: self._memory.upload(source, stream), check, case.method)

    def _copy_down(self, case: DeviceCase) -> Operation:
        target, stream = self._pinned.array[COPIED_BYTES:], self._clock.stream
        target[:] = 0
        poison_device(self._memory, COPIED_BYTES, stream)
        truth = np.full(COPIED_BYTES, POISON, np.uint8)

        def check() -> int:
            return compare(case.name, COPIED_BYTES, lambda a, b: target[a:b], lambda a, b: truth[a:b])

        return self._timed(lambda: self._memory.download(target, stream), check, case.method)

    def _graph(self) -> Sampled:
        graph, stream = Graph(), self._clock.stream
        self._held.callback(graph.close)
        with graph.capture(stream):
            for _ in range(GRAPH_LAUNCHES):
                self._launch()
        found = self._clock.time(Operation(lambda: graph.launch(stream), nothing, n_calls=GRAPH_LAUNCHES))
        return per(found, GRAPH_LAUNCHES)

    def _read(self, case: DeviceCase) -> Sampled:
        """A chain is walked on from where the last operation left it, so that no cache holds what comes."""
        stream = self._clock.stream
        chain = PinnedMemory(N_PLACES * PLACE_BYTES)
        self._held.callback(chain.free)
        words = chain.array.view(np.uint32).reshape(N_PLACES, -1)
        words[:] = chain_of(N_PLACES, np.random.default_rng(5))
        place, chase = self._memory, self._kernels.load(kernel("pointer_chase", "pointer_chase_cuda"))
        place.upload(np.zeros(1, np.uint32), stream)
        stream.synchronise()
        arguments, n_walks = chase.arguments(place, chain, STEPS), [0]

        def ask() -> None:
            chase.launch(stream, 1, arguments)
            n_walks[0] += 1

        def check() -> int:
            reached = np.empty(1, np.uint32)
            place.download(reached, stream)
            stream.synchronise()
            if reached[0] != pointer_chase_ref(words, 0, n_walks[0] * STEPS % N_PLACES):
                raise RuntimeError(
                    f"{case.name} reached a wrong place: this is a bug of yakvrt's or the driver's"
                )
            return 4

        return per(self._clock.time(Operation(ask, check)), STEPS)


def per(sampled: Sampled, n: int) -> Sampled:
    """Of one of n things that an operation does."""
    from dataclasses import replace

    return replace(
        sampled, samples_ns=tuple(ns / n for ns in sampled.samples_ns), n_loops=sampled.n_loops * n
    )


def nothing() -> int:
    """Checks what moves no bytes."""
    call("cuCtxSynchronize")
    return 0
