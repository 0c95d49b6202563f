"""Streams, events and graphs of a FakeGpu: work waits until something demands it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

Work = Callable[[], None]
CAPTURE_UNSUPPORTED, CAPTURE_UNJOINED, CAPTURE_ISOLATION = 900, 904, 905


class DriverError(Exception):
    """The driver answers with this CUresult."""

    def __init__(self, code: int) -> None:
        self.code = code


@dataclass(eq=False)
class Mark:
    """A point in a lane of a graph."""


@dataclass(eq=False)
class Wait:
    """For a point in another lane of the same graph."""

    lane: FakeStream
    mark: Mark


@dataclass(eq=False)
class FakeGraph:
    """What was asked of a stream and of those that waited for it meanwhile, stream by stream."""

    origin: FakeStream
    lanes: dict[FakeStream, list[Work | Mark | Wait]] = field(default_factory=dict)

    def join(self, stream: FakeStream) -> None:
        if stream.graph not in (None, self):
            raise DriverError(CAPTURE_ISOLATION)
        stream.graph = self
        self.lanes.setdefault(stream, [])

    def end(self) -> None:
        """Raises: DriverError for a lane that nobody waits for at its end."""
        waited = {id(step.mark) for lane in self.lanes.values() for step in lane if isinstance(step, Wait)}
        for stream, lane in self.lanes.items():
            stream.graph = None
            if stream is not self.origin and not (lane and id(lane[-1]) in waited):
                raise DriverError(CAPTURE_UNJOINED)

    def launch(self, stream: FakeStream, *, eager: bool) -> None:
        """`eager`: the other lanes do their work before the first where nothing makes them wait; else as late
        as they may. A missing wait shows in one of both.
        """
        streams = {lane: FakeStream() for lane in self.lanes if lane is not self.origin}
        others, streams[self.origin] = list(streams.values()), stream
        marks: dict[int, Work] = {}

        def reached(mark: Mark) -> Work:
            return marks.setdefault(id(mark), lambda: None)

        def work_of(step: Work | Mark | Wait) -> Work:
            if isinstance(step, Mark):
                return reached(step)
            if isinstance(step, Wait):
                return lambda: streams[step.lane].run(reached(step.mark))
            return step

        if eager:
            stream.work.append(lambda: [other.run() for other in others] and None)
        for lane, steps in self.lanes.items():
            streams[lane].work.extend(work_of(step) for step in steps)
        if stream.eager:
            stream.run()


class FakeStream:
    """Work that was asked for, in order; what is asked while a graph is captured goes into that instead. An
    eager one does it at once, where nothing makes it wait for another.
    """

    def __init__(self, *, eager: bool = False) -> None:
        self.work: deque[Work] = deque()
        self.eager = eager
        self.graph: FakeGraph | None = None

    def ask(self, work: Work) -> None:
        if self.graph:
            self.graph.lanes[self].append(work)
        else:
            self.work.append(work)
            if self.eager:
                self.run()

    def capture(self) -> None:
        FakeGraph(self).join(self)

    def run(self, last: Work | None = None) -> None:
        """Does the work up to `last`, or all of it."""
        if self.graph:
            raise DriverError(CAPTURE_UNSUPPORTED)
        while self.work and (last is None or last in self.work):
            self.work.popleft()()

    def wait(self, event: FakeEvent) -> None:
        source, mark = event.stream, event.mark
        if source is None:
            return
        if isinstance(mark, Mark):
            if event.graph is None or event.graph.origin.graph is not event.graph:
                raise DriverError(CAPTURE_ISOLATION)
            event.graph.join(self)
            event.graph.lanes[self].append(Wait(source, mark))
        elif self.graph:
            raise DriverError(CAPTURE_ISOLATION)
        else:
            self.ask(lambda: source.run(mark))


class FakeEvent:
    """A point in a stream; `seconds` once it is reached."""

    def __init__(self) -> None:
        self.stream: FakeStream | None = None
        self.mark: Work | Mark | None = None
        self.graph: FakeGraph | None = None
        self.seconds: float | None = None

    def record(self, stream: FakeStream, *, external: bool = False) -> None:
        """external: it is a graph's work, which tells the time; streams cannot wait for it in the graph."""

        def mark() -> None:
            self.seconds = time.perf_counter()

        self.stream, self.graph, self.seconds = stream, stream.graph, None
        if stream.graph and external:
            self.mark = mark
            stream.graph.lanes[stream].append(mark)
        elif stream.graph:
            self.mark = Mark()
            stream.graph.lanes[stream].append(self.mark)
        else:
            self.mark = mark
            stream.ask(mark)

    def complete(self) -> None:
        if isinstance(self.mark, Mark):
            raise DriverError(CAPTURE_UNSUPPORTED)
        if self.stream is not None:
            self.stream.run(self.mark)
