"""When a part of a step ran which stage on which stream: events between launches, also inside a graph."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..trace_log import TraceLog
from ..trace_records import HOST, Stage
from .stream import Event, Stream

MAIN, BESIDE = HOST + 1, HOST + 2  # tracks
TRACKS = {HOST: "host", MAIN: "stream", BESIDE: "stream beside it"}


@dataclass(slots=True)
class _Slice:
    """From one event to another. waits: pairs of events between which the stream waited for the other."""

    stage: Stage
    begin: Event
    end: Event | None
    waits: list[tuple[Event, Event]]


def _read_once(stages: Sequence[Stage]) -> Iterator[Stage]:
    """A stage that plain Python interrupts has several slices; its weights are read in the first one's."""
    told = set[int]()
    for stage in stages:
        yield stage._replace(n_bytes=0) if id(stage) in told else stage
        told.add(id(stage))


class StageClock:
    """Marks stages while launches are asked for; read() tells the times once they are done.

    captured: they are asked for once, into a graph, and the events belong to it. Owns: the events.
    """

    def __init__(self, stream: Stream, side: Stream, *, captured: bool) -> None:
        self._streams = {MAIN: stream, BESIDE: side}
        self._captured = captured
        self._events: list[Event] = []
        self._slices: dict[int, list[_Slice]] = {MAIN: [], BESIDE: []}
        self._stages: dict[int, tuple[Stage, ...]] = {}
        self.stage = Stage()

    def begin(self, stage: Stage) -> None:
        """Of what comes next; what came before the first stage belongs to it."""
        slices = self._slices[MAIN]
        if len(slices) == 1 and not slices[0].stage.name:
            slices[0].stage = stage
        self.stage = stage

    def launching(self, track: int = MAIN) -> None:
        """A launch comes. The slice before ends where that of another stage begins."""
        slices = self._slices[track]
        last = slices[-1] if slices else None
        if last and not last.end and last.stage is self.stage:
            return
        now = self._now(track)
        if last and not last.end:
            last.end = now
        slices.append(_Slice(self.stage, now, None, []))

    def pause(self, track: int = MAIN) -> None:
        """No launch comes for a while."""
        slices = self._slices[track]
        if slices and not slices[-1].end:
            slices[-1].end = self._now(track)

    def waiting(self) -> Event:
        """The stream is about to wait for the one beside it; waited() takes the answer when it has."""
        return self._now(MAIN)

    def waited(self, since: Event) -> None:
        slices = self._slices[MAIN]
        if slices and not slices[-1].end:
            slices[-1].waits.append((since, self._now(MAIN)))

    def read(self, log: TraceLog) -> None:
        """Notes what has run; the streams have done all that was asked, just now by the host's clock."""
        now_ns = time.monotonic_ns()
        main = self._slices[MAIN]
        if not main:
            return
        last = main[-1].end
        assert last

        def at_ns(event: Event) -> int:
            return now_ns - round(last.ms_since(event) * 1e6)

        for track, slices in self._slices.items():
            if not slices:
                continue
            times = np.zeros((len(slices), 3), np.int64)
            for i, found in enumerate(slices):
                assert found.end
                waited_ms = sum(end.ms_since(begin) for begin, end in found.waits)
                times[i] = at_ns(found.begin), at_ns(found.end), round(waited_ms * 1e6)
            if track not in self._stages:  # the same every time, by which the log knows them
                self._stages[track] = tuple(_read_once([found.stage for found in slices]))
            log.slices(self._stages[track], track, times)

    def close(self) -> None:
        """The next marks, if any, are of the same stages, as a part of a step always is."""
        self._slices = {MAIN: [], BESIDE: []}
        self.stage = Stage()
        while self._events:
            self._events.pop().close()

    def _now(self, track: int) -> Event:
        event = Event()
        self._events.append(event)
        return self._streams[track].record(event, timed_by_graph=self._captured)
