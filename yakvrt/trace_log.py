"""What runs when, noted while it runs: slices of threads or streams, and counters, for trace_file.py.

A step's Python runs out of cold caches, so it only puts down what it has, and threads write their times where
they stay; some hundred steps later all of that goes to a file (trace_store.py). So memory stays as it is
however long a run takes. 16 bytes a slice: 4 KB for a token of a model of 30 layers on two threads.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np

from .trace_records import HOST, JOB, NO_LAYER, PACKED, RECORD, Job, Label, Stage
from .trace_store import TraceStore

BUFFER_WORDS = 1 << 17
MOST_NOTES = 1024
MOST_PASTS = 30_000
SAMPLE_NS = 50_000_000  # between two readings of counters, at least
SAMPLE_PAUSE = 500  # times what a reading takes
NEVER = 1 << 62
COUNTERS = "moved_bytes", "gross_bytes"  # of KvMethod.stats()

Totals = Callable[[], Mapping[str, float | str]]


class Trace(Protocol):
    """What notes spans and counters, or does not."""

    def span(
        self, name: str, layer: int = NO_LAYER, *, whole: bool = False, **numbers: int
    ) -> AbstractContextManager[None]:
        """The block is a slice on the host's track; a whole one does not show the stages of steps inside,
        where they are many and small. At most two numbers.
        """

    def sample(self, totals: Totals) -> None:
        """Counters, read where they have not been for a while."""

    def past(
        self, slot: int | None, name: str, began_s: float, ended_s: float, told: Mapping[str, int | str]
    ) -> None:
        """A slice on the track of a slot, or one of those that wait for one, by time.perf_counter()."""


_NOTHING = nullcontext()


class NoTrace:
    """Nothing is noted."""

    def span(
        self, name: str, layer: int = NO_LAYER, *, whole: bool = False, **numbers: int
    ) -> AbstractContextManager[None]:
        return _NOTHING

    def sample(self, totals: Totals) -> None:
        pass

    def past(
        self, slot: int | None, name: str, began_s: float, ended_s: float, told: Mapping[str, int | str]
    ) -> None:
        pass


NO_TRACE = NoTrace()


class Past(NamedTuple):
    """A slice that was noted when it was over."""

    process: int
    slot: int | None
    name: str
    begin_ns: int
    end_ns: int
    told: Mapping[str, int | str]


# A job of a team: the span around it, its stages and threads, and where in the buffer its times lie.
_Ran = tuple[str, Sequence[Stage], np.ndarray, int, int]


class TraceLog:
    """For one thread at a time. Owns: the store, until close().

    most_bytes: only the newest records are kept, in so much memory; all, in a file, by default.
    Raises: OSError, naming `target`, where nothing can be written, here and wherever something is noted.
    """

    def __init__(self, directory: Path, target: str = "the trace", most_bytes: int | None = None) -> None:
        self._store = TraceStore(directory, target, most_bytes)
        self.began_ns = time.monotonic_ns()
        self.labels: list[Label] = []
        self.processes: list[str] = []
        self.tracks: dict[tuple[int, int], str] = {}  # by process and track
        self.within = ""  # the span that is open
        self.shows_stages = True
        self.pasts: deque[Past] = deque(maxlen=MOST_PASTS)  # the newest
        self._notes: list[Span | _Ran | bytes] = []
        self._words, self._n_used = np.zeros(BUFFER_WORDS, np.int64), 0
        self._address = self._words.ctypes.data
        self._ids: dict[Label, int] = {}
        self._jobs: list[Job] = []
        self._job_ids: dict[tuple[int, tuple[int, ...], int, str], int] = {}
        self._totals: Totals | None = None
        self._due_ns = 0
        self._has_written = False

    def begin_process(self, name: str) -> None:
        """What follows is shown under this name."""
        self._write_notes()
        self._due_ns = 0
        self.processes.append(name)

    def name_track(self, track: int, name: str) -> None:
        self.tracks[len(self.processes) - 1, track] = name

    def span(self, name: str, layer: int = NO_LAYER, *, whole: bool = False, **numbers: int) -> Span:
        """The block is a slice on the host's track, with up to two numbers; see Trace."""
        return Span(self, name, layer, whole, numbers)

    def end_span(self, span: Span) -> None:
        """It is over now."""
        self._notes.append(span)
        if len(self._notes) >= MOST_NOTES:
            self._write_notes()
        if self._has_written and not span.within:
            self._has_written = False
            self._store.end_step()

    def room(self, n_words: int) -> int:
        """The address of int64 words for the times of a team's job, about which ran() then tells; whatever
        was there before is no longer needed.
        """
        if self._n_used + n_words > len(self._words):
            self._write_notes()
            if n_words > len(self._words):
                self._words = np.zeros(n_words, np.int64)
                self._address = self._words.ctypes.data
        return self._address + 8 * self._n_used

    def ran(self, stages: Sequence[Stage], threads: np.ndarray, n_words: int) -> None:
        """A job has ended whose times lie in the words that it had room for. Neither `stages` nor `threads`
        may change later. threads: by their places in the job; the first is the host's, wherever it runs.
        """
        self._notes.append((self.within, stages, threads, self._n_used, n_words))
        self._n_used += n_words

    def slices(self, stages: Sequence[Stage], track: int, times: np.ndarray) -> None:
        """Slices of a track. `stages` may not change later.

        Shapes: times int64 [stages, 3]: when each began and ended, and what it waited in between.
        """
        job = self._jobs[self._job_id(stages, (track,), self.within)]
        self._notes.append(job.records(*times.T[:, None]).tobytes())

    def sample(self, totals: Totals) -> None:
        """Counters: read now, or with the next step that comes late enough, or at the end."""
        self._totals = totals
        if time.monotonic_ns() >= self._due_ns:
            self.read_counters()

    def read_counters(self) -> None:
        """What sample() left for later."""
        if self._totals is None:
            return
        began_ns = time.monotonic_ns()
        found, self._totals = self._totals(), None
        now_ns = time.monotonic_ns()
        self._due_ns = NEVER
        if "moved_bytes" in found:
            self._due_ns = now_ns + max(SAMPLE_NS, SAMPLE_PAUSE * (now_ns - began_ns))
            label = Label(len(self.processes) - 1, "moved", "", NO_LAYER, COUNTERS, is_counter=True)
            totals = (int(found.get(name, 0)) for name in COUNTERS)
            self._notes.append(PACKED.pack(self._id(label), HOST, now_ns, now_ns, *totals))

    def past(
        self, slot: int | None, name: str, began_s: float, ended_s: float, told: Mapping[str, int | str]
    ) -> None:
        """See Trace; from any thread."""
        times_ns = round(began_s * 1e9), round(ended_s * 1e9)
        self.pasts.append(Past(len(self.processes) - 1, slot, name, *times_ns, told))

    def records(self) -> Iterator[np.ndarray]:
        """All in order, some at a time; spans come behind what they hold. Raises: OSError."""
        self._write_notes()
        for record, words in self._store.entries():
            if record[0] == JOB:
                job = self._jobs[record[1]]
                pairs = np.frombuffer(words, np.int64).reshape(len(job.blank), -1)
                yield job.records_of_ticks(pairs).reshape(-1)
            else:
                yield np.array([record], RECORD)

    def close(self) -> None:
        self._store.close()

    def _write_notes(self) -> None:
        if not self._notes:
            return
        notes, self._notes = self._notes, []
        parts: list[bytes | memoryview] = []
        for note in notes:
            if isinstance(note, tuple):
                within, stages, threads, at, n_words = note
                job = self._job_id(stages, (HOST, *threads[1:].tolist()), within)
                parts += PACKED.pack(JOB, job, 0, 0, n_words, 0), self._words[at : at + n_words].data
            else:
                parts.append(self._span_bytes(note) if isinstance(note, Span) else note)
        self._n_used, self._has_written = 0, True
        self._store.write(parts)

    def _span_bytes(self, span: Span) -> bytes:
        process, names = len(self.processes) - 1, tuple(span.numbers)
        label = self._id(Label(process, span.name, span.within, span.layer, names, is_span=True))
        numbers = (*span.numbers.values(), 0, 0)[:2]
        return PACKED.pack(label, HOST, span.began_ns, span.ended_ns, *numbers)

    def _job_id(self, stages: Sequence[Stage], tracks: tuple[int, ...], within: str) -> int:
        process = len(self.processes) - 1
        key = id(stages), tracks, process, within
        if key not in self._job_ids:
            names = "wait_ns", "bytes"
            blank = np.zeros((len(tracks), len(stages)), RECORD)
            blank["label"] = [
                self._id(Label(process, stage.name or within or "other", within, stage.layer, names))
                for stage in stages
            ]
            blank["track"] = np.array(tracks)[:, None]
            blank["second"] = [stage.n_bytes // len(tracks) for stage in stages]
            self._job_ids[key] = len(self._jobs)
            self._jobs.append(Job(stages, blank))
        return self._job_ids[key]

    def _id(self, label: Label) -> int:
        if label not in self._ids:
            self._ids[label] = len(self.labels)
            self.labels.append(label)
        return self._ids[label]


class Span:
    """Context manager: its block is a slice of the log."""

    __slots__ = ("_log", "_showed", "_whole", "began_ns", "ended_ns", "layer", "name", "numbers", "within")

    def __init__(self, log: TraceLog, name: str, layer: int, whole: bool, numbers: dict[str, int]) -> None:
        self._log, self.name, self.layer, self._whole, self.numbers = log, name, layer, whole, numbers

    def __enter__(self) -> None:
        log = self._log
        self.within, self._showed = log.within, log.shows_stages
        log.within, log.shows_stages = self.name, log.shows_stages and not self._whole
        self.began_ns = time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended_ns = time.monotonic_ns()
        log = self._log
        log.within, log.shows_stages = self.within, self._showed
        log.end_span(self)
