"""How long work on a stream takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from yakvrt.cuda.stream import Event, Stream

ROUNDS = 7


def milliseconds(stream: Stream, work: Callable[[], None], n: int) -> float:
    """Of one of n, the median of several rounds behind one that warms up."""
    start, end = Event(), Event()
    work()
    times = []
    for _ in range(ROUNDS):
        stream.record(start)
        for _ in range(n):
            work()
        stream.record(end)
        end.synchronise()
        times.append(end.ms_since(start) / n)
    start.close()
    end.close()
    return statistics.median(times)
