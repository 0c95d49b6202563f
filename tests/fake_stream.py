"""Streams and events of a FakeGpu: work waits until something demands it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable


class FakeStream:
    """Work that was asked for, in order."""

    def __init__(self) -> None:
        self.work: deque[Callable[[], None]] = deque()

    def run(self, last: Callable[[], None] | None = None) -> None:
        """Does the work up to `last`, or all of it."""
        while self.work and (last is None or last in self.work):
            self.work.popleft()()


class FakeEvent:
    """A point in a stream; `seconds` once it is reached."""

    def __init__(self) -> None:
        self.stream: FakeStream | None = None
        self.mark: Callable[[], None] | None = None
        self.seconds: float | None = None

    def record(self, stream: FakeStream) -> None:
        def mark() -> None:
            self.seconds = time.perf_counter()

        self.stream, self.mark, self.seconds = stream, mark, None
        stream.work.append(mark)

    def complete(self) -> None:
        if self.stream is not None:
            self.stream.run(self.mark)
