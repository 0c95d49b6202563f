"""What a trace consists of: records of one size, and jobs, which are records before anything is worked out.

Stages of a job are written down by its threads in ticks, as cheaply as can be; they become times of the
system's clock when the trace is read, between two readings of that clock by each thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

import numpy as np

NO_LAYER = -1
HOST = 0  # the track of the thread that runs the steps

# Of a slice: begin_ns and end_ns by the system's monotonic clock, and up to two numbers that its label names.
# Of a counter: begin_ns, and its numbers.
RECORD = np.dtype(
    [
        ("label", np.int32),
        ("track", np.int32),
        ("begin_ns", np.int64),
        ("end_ns", np.int64),
        ("first", np.int64),
        ("second", np.int64),
    ]
)
PACKED = Struct("=iiqqqq")  # one RECORD
JOB = -1  # instead of a label: a job follows, track says which, first how many words


class Stage(NamedTuple):
    """A part of a step; n_bytes of weights are read there at least. One without a name is called after the
    span in which it runs.
    """

    name: str = ""
    layer: int = NO_LAYER
    n_bytes: int = 0


class Label(NamedTuple):
    """What records have in common. within: the span around them, if any. numbers: the names of theirs.
    is_span: a span, which may hold other slices.
    """

    process: int
    name: str
    within: str
    layer: int
    numbers: tuple[str, ...]
    is_span: bool = False
    is_counter: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Stages of some tracks, each of which had a share of all; `blank` are their records [tracks, stages],
    but for the times.
    """

    stages: Sequence[Stage]  # kept so that no others get their id
    blank: np.ndarray

    def records(self, begin_ns: np.ndarray, end_ns: np.ndarray, wait_ns: np.ndarray) -> np.ndarray:
        """Those of one run. The last stage of all tracks ends with the last of them, for which the others
        wait.

        Shapes: int64 [tracks, stages] each -> RECORD [tracks, stages].
        """
        records = self.blank.copy()
        records["begin_ns"], records["end_ns"], records["first"] = begin_ns, end_ns, wait_ns
        last = records[:, -1]
        ended_ns = last["end_ns"].max()
        last["first"] += ended_ns - last["end_ns"]
        last["end_ns"] = ended_ns
        return records

    def records_of_ticks(self, words: np.ndarray) -> np.ndarray:
        """The same from what a team's threads write (kernels/team.py).

        Shapes: words int64 [tracks, n], of which 2 * (stages + 2) are read.
        """
        n_tracks, n_stages = self.blank.shape
        pairs = words[:, : 2 * (n_stages + 2)].reshape(n_tracks, n_stages + 2, 2)
        (began_ns, began), (ended_ns, ended) = pairs[:, 0].T, pairs[:, -1].T
        taken_ns, n_ticks = ended_ns - began_ns, np.maximum(ended - began, 1)
        ns_per_tick = (taken_ns / n_ticks)[:, None]
        at_ns = np.zeros((n_tracks, n_stages + 1), np.int64)
        at_ns[:, 1:] = (pairs[:, 1:-1, 0] - began[:, None]) * ns_per_tick
        # a thread that was moved to a core that counts otherwise
        at_ns = np.maximum.accumulate(np.clip(at_ns, 0, taken_ns[:, None]), axis=1)
        begin_ns, end_ns = (began_ns[:, None] + at_ns[:, part] for part in (slice(-1), slice(1, None)))
        wait_ns = (pairs[:, 1:-1, 1] * ns_per_tick).astype(np.int64)
        return self.records(begin_ns, end_ns, np.clip(wait_ns, 0, end_ns - begin_ns))
