"""Times what streams are asked for: by the GPU's clock behind a gate, so that asking is not timed, or by the
host's where the host takes part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from yakvrt.cuda.driver import DeviceError, DeviceLost, call
from yakvrt.cuda.memory import PinnedMemory
from yakvrt.cuda.stream import Event, Stream

MOST_GATED = 256  # calls that a stream takes while it waits; asking a full one would wait for ever
MOST_LOOPS = 256
GREATER_OR_EQUAL = 0  # CU_STREAM_WAIT_VALUE_GEQ
DEVICE, HOST = "device", "host"


@dataclass(frozen=True, slots=True)
class Operation:
    """Something to time, and the proof that it was done.

    `ask` does it once, with n_calls calls of the driver. `clock`: "device" times what the stream does, "host"
    until `ask` comes back. `beside`: it asks the side stream too. `waits`: it may wait for the stream itself,
    as copies of pageable memory do, so that no gate may be shut. `check` compares what the last one left and
    returns the bytes that it compared.
    """

    ask: Callable[[], None]
    check: Callable[[], int]
    n_calls: int = 1
    clock: str = DEVICE
    beside: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Sampled:
    """Nanoseconds of one operation, a number for each sample of n_loops in a row."""

    samples_ns: tuple[float, ...]
    n_loops: int
    clock: str
    is_gated: bool
    verified_bytes: int
    more_ns: tuple[tuple[str, float], ...] = ()
    """Further times by the record's names, medians."""


class Gate:
    """A point in a stream that it does not pass before the host opens it; where it `works`."""

    def __init__(self, stream: Stream) -> None:
        """Raises: DeviceError where no memory can be pinned."""
        self._stream, self._memory, self.works = stream, PinnedMemory(4), False
        self._word = self._memory.array.view(np.uint32)
        self.open()

    def probe(self) -> None:
        """Finds out whether it works: a driver or a virtual GPU may be without. Times then begin before all
        is asked for. Raises: DeviceLost.
        """
        try:
            self.shut_for(0)
            self._stream.synchronise()
            self.works = True
        except DeviceLost:
            raise
        except DeviceError:
            self.works = False

    def shut(self) -> None:
        """What is asked from now on waits for open(), which has to follow whatever happens."""
        self._word[0] = 0
        self.shut_for(1)

    def shut_for(self, number: int) -> None:
        address = self._memory.address
        call("cuStreamWaitValue32", self._stream.handle, address, number, GREATER_OR_EQUAL)

    def open(self) -> None:
        self._word[0] = 1

    def free(self) -> None:
        self._word = np.empty(0, np.uint32)
        self._memory.free()


class DeviceClock:
    """Two streams, the gate and the events that they are timed with; `device_clock` gives them back.

    Units: sample_s is the least that a sample should last.
    """

    def __init__(self, held: ExitStack, n_samples: int, sample_s: float) -> None:
        """`held` closes what is made. Raises: DeviceError."""
        self.n_samples, self.sample_s = n_samples, sample_s
        self.stream, self.side = Stream(), Stream()
        held.callback(self.stream.close)
        held.callback(self.side.close)
        self.start, self.end, self.side_end = Event(), Event(), Event()
        for event in (self.start, self.end, self.side_end):
            held.callback(event.close)
        self.gate = Gate(self.stream)
        held.callback(self.gate.free)
        self.gate.probe()
        held.callback(self.stream.synchronise)

    def time(self, operation: Operation) -> Sampled:
        """Warms up, finds the number of loops, takes the samples and checks what the last one left."""
        gated = self._may_gate(operation)
        most = max(1, MOST_GATED // operation.n_calls) if gated else MOST_LOOPS
        # Without the gate: a driver that loads a kernel when it is first asked for may wait for all streams.
        self._once_ns(operation, 1, gated=False)
        n, taken = 1, self._once_ns(operation, 1, gated)
        while n < most and taken * n < self.sample_s * 1e9 / 2:
            n = min(most, max(2 * n, int(self.sample_s * 1e9 / max(taken, 1.0))))
            taken = self._once_ns(operation, n, gated)
        samples = tuple(self._once_ns(operation, n, gated) for _ in range(self.n_samples))
        return Sampled(samples, n, operation.clock, gated, operation.check())

    def _once_ns(self, operation: Operation, n: int, gated: bool) -> float:
        """A sample: the mean of n in a row."""
        if operation.clock == HOST:
            began = time.perf_counter_ns()
            for _ in range(n):
                operation.ask()
            taken = time.perf_counter_ns() - began
            self.stream.synchronise()
            return taken / n
        with self.between_events(gated, beside=operation.beside):
            for _ in range(n):
                operation.ask()
        return self.end.ms_since(self.start) * 1e6 / n

    @contextmanager
    def between_events(self, gated: bool, *, beside: bool) -> Iterator[None]:
        """What is asked inside lies between the events `start` and `end`, which are reached afterwards.

        `beside`: the side stream begins with the first one, ends with `side_end`, and is waited for.
        """
        try:
            if gated:
                self.gate.shut()
            self.stream.record(self.start)
            if beside:
                self.side.wait(self.start)
            yield
            if beside:
                self.stream.wait(self.side.record(self.side_end))
            self.stream.record(self.end)
        finally:
            self.gate.open()  # also behind Ctrl-C: nothing could be freed behind a gate that stays shut
        self.end.synchronise()

    def _may_gate(self, operation: Operation) -> bool:
        fits = operation.n_calls <= MOST_GATED and not operation.waits
        return self.gate.works and fits and operation.clock == DEVICE


@contextmanager
def device_clock(n_samples: int, sample_s: float) -> Iterator[DeviceClock]:
    """Of the device that is current. Raises: DeviceError."""
    with ExitStack() as held:
        yield DeviceClock(held, n_samples, sample_s)
