"""Copies of one piece of memory between host and GPU: sizes, kinds of host memory, directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from yakvrt.cuda.driver import call
from yakvrt.cuda.memory import DeviceMemory
from yakvrt.transfer.gpu_case import DeviceCase
from yakvrt.transfer.gpu_clock import DeviceClock, Operation, Sampled
from yakvrt.transfer.gpu_memory import (
    SLACK,
    HostBuffer,
    compare,
    compare_device,
    fill_device,
    on_cpus,
    poison_device,
    source_bytes,
)
from yakvrt.transfer.memory import POISON

MOST_PLACES = 256  # in host memory, that copies take in turn
PAGE = 4096


class Copies:
    """Memory of one kind on the host, and what lies across from it. Owns: it, in `held`."""

    def __init__(
        self, held: ExitStack, clock: DeviceClock, cases: Sequence[DeviceCase], cpus: Sequence[int] = ()
    ) -> None:
        """For cases of one kind of memory, near some CPUs. Raises: DeviceError, OSError."""
        self._clock, kind = clock, cases[0].memory
        directions = {case.direction for case in cases}
        self.n_bytes = n_bytes = max(case.row_bytes for case in cases)

        def host() -> HostBuffer:
            with on_cpus(cpus):
                buffer = HostBuffer(kind, n_bytes)
            held.callback(buffer.free)
            return buffer

        def device() -> DeviceMemory:
            memory = DeviceMemory(n_bytes + SLACK)
            held.callback(memory.free)
            return memory

        self._source = host() if directions & {"h2d", "both"} else None
        self._target = host() if directions & {"d2h", "both"} else None
        self._to = device() if directions & {"h2d", "both", "d2d"} else None
        self._from = device() if directions & {"d2h", "both", "d2d"} else None
        if self._from:
            fill_device(self._from, clock.stream)

    def time(self, case: DeviceCase) -> Sampled:
        """Raises: DeviceError, RuntimeError for wrong bytes."""
        makers = {"h2d": self._up, "d2h": self._down, "both": self._both, "d2d": self._within}
        return self._clock.time(makers[case.direction](case))

    def _places(self, n_bytes: int) -> list[int]:
        """Bytes of the host's memory at which copies begin, in turn."""
        n = max(1, min(MOST_PLACES, self.n_bytes // max(n_bytes, PAGE)))
        return [i * (self.n_bytes // n) // PAGE * PAGE for i in range(n)]

    def _up(self, case: DeviceCase) -> Operation:
        assert self._source
        assert self._to
        clock, to, source, n = self._clock, self._to, self._source.address, case.row_bytes
        places, turn = self._places(n), Turn()
        poison_device(to, n, clock.stream)

        def ask() -> None:
            place = places[turn.next() % len(places)]
            call("cuMemcpyHtoDAsync", to.address, source + place, n, clock.stream.handle)

        def check() -> int:
            place = places[turn.last % len(places)]
            return compare_device(
                case.name, n, to, clock.stream, lambda first, last: source_bytes(place + first, place + last)
            )

        return Operation(ask, check, waits=case.memory == "pageable")

    def _down(self, case: DeviceCase) -> Operation:
        return self._to_host(case, self._clock.stream.handle)

    def _to_host(self, case: DeviceCase, stream: object) -> Operation:
        assert self._target
        assert self._from
        target, source, n = self._target, self._from.address, case.row_bytes
        places, turn = self._places(n), Turn()
        for place in places:
            target.array[place : place + n] = POISON

        def ask() -> None:
            place = places[turn.next() % len(places)]
            call("cuMemcpyDtoHAsync", target.address + place, source, n, stream)

        def check() -> int:
            left: np.ndarray = target.array[places[turn.last % len(places)] :]
            return compare(case.name, n, lambda first, last: left[first:last], source_bytes)

        return Operation(ask, check, waits=case.memory == "pageable")

    def _both(self, case: DeviceCase) -> Operation:
        """At once, the way back on the side stream."""
        up, down = self._up(case), self._to_host(case, self._clock.side.handle)
        ask = both(up.ask, down.ask)
        return Operation(ask, lambda: up.check() + down.check(), n_calls=2, beside=True, waits=up.waits)

    def _within(self, case: DeviceCase) -> Operation:
        """The GPU's own memory, which is read and written."""
        assert self._to
        assert self._from
        clock, to, source, n = self._clock, self._to, self._from.address, case.row_bytes
        poison_device(to, n, clock.stream)
        return Operation(
            lambda: to.copy_from(source, n, clock.stream),
            lambda: compare_device(case.name, n, to, clock.stream, source_bytes),
        )


class Turn:
    """Counts operations."""

    def __init__(self) -> None:
        self.last = -1

    def next(self) -> int:
        self.last += 1
        return self.last


def both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def ask() -> None:
        first()
        second()

    return ask
