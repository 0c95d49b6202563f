"""What runs when, noted while it runs: slices of threads or streams, and counters, for trace_file.py.

A step's Python runs out of cold caches, so it only puts down what it has; some hundred steps later all of
that becomes records of one size in a file without a name. So memory stays as it is however long a run takes,
and nothing is left of one that is killed. 40 bytes a slice: 12 KB for a token of a model of 30 layers on two
threads.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np

NO_LAYER = -1
HOST = 0  # the track of the thread that runs the steps

# Of a slice: begin_ns and end_ns by the system's monotonic clock, and up to two numbers that its label names.
# Of a counter: begin_ns, and its number.
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
BUFFER_BYTES = 1 << 20
MOST_NOTES = 256
SAMPLE_NS = 50_000_000  # between two readings of counters, which take some 40 us
COUNTERS = "moved_bytes", "gross_bytes"  # of KvMethod.stats()

Totals = Callable[[], Mapping[str, float | str]]


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


class NoTrace:
    """Nothing is noted."""

    def span(
        self, name: str, layer: int = NO_LAYER, *, whole: bool = False, **numbers: int
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def sample(self, totals: Totals) -> None:
        pass


NO_TRACE = NoTrace()


class _Job(NamedTuple):
    """Stages of some tracks, and their times."""

    process: int
    within: str
    stages: Sequence[Stage]
    tracks: Sequence[int] | np.ndarray
    times: np.ndarray


class _Note(NamedTuple):
    """A record to be."""

    label: Label
    begin_ns: int
    end_ns: int
    numbers: tuple[int, ...]


class _Slices(NamedTuple):
    """Records [tracks, stages]; the stages are kept so that no others get their id."""

    stages: Sequence[Stage]
    records: np.ndarray


class TraceLog:
    """For one thread at a time. Owns: the file, which lies in `directory` until close().

    Raises: OSError, naming `target`, where nothing can be written, here and wherever something is noted.
    """

    def __init__(self, directory: Path, target: str = "the trace") -> None:
        self._target = target
        self.began_ns = time.monotonic_ns()
        self.labels: list[Label] = []
        self.processes: list[str] = []
        self.tracks: dict[tuple[int, int], str] = {}  # by process and track
        self.within = ""  # the span that is open
        self.shows_stages = True
        self._notes: list[_Job | _Note] = []
        self._ids: dict[Label, int] = {}
        self._of_stages: dict[tuple[int, tuple[int, ...], int, str], _Slices] = {}
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=BUFFER_BYTES)  # noqa: SIM115 (close())
        except OSError as error:
            error.filename = target
            raise
        self._totals: Totals | None = None
        self._sampled_ns = 0

    def begin_process(self, name: str) -> None:
        """What follows is shown under this name."""
        self.processes.append(name)

    def name_track(self, track: int, name: str) -> None:
        self.tracks[len(self.processes) - 1, track] = name

    def span(self, name: str, layer: int = NO_LAYER, *, whole: bool = False, **numbers: int) -> Span:
        """The block is a slice on the host's track, with up to two numbers; see Trace."""
        return Span(self, name, layer, whole, numbers)

    def end_span(self, span: Span) -> None:
        """It is over now."""
        ended_ns = time.monotonic_ns()
        process, names = len(self.processes) - 1, tuple(span.numbers)
        label = Label(process, span.name, span.within, span.layer, names, is_span=True)
        self._note(_Note(label, span.began_ns, ended_ns, tuple(span.numbers.values())))

    def slices(self, stages: Sequence[Stage], tracks: Sequence[int] | np.ndarray, times: np.ndarray) -> None:
        """Slices of some tracks, each of which had a share of all stages. Neither `stages` nor `times` may
        change later; what comes behind the last stage in `times` is not read. The last stage of all tracks
        ends with the last of them, for which the others wait.

        Shapes: times int64 [tracks, stages, 3]: when each began and ended, and what it waited in between.
        """
        self._note(_Job(len(self.processes) - 1, self.within, stages, tracks, times))

    def sample(self, totals: Totals) -> None:
        """Counters: read now, or with the next step that comes late enough, or at the end."""
        self._totals = totals
        if time.monotonic_ns() - self._sampled_ns >= SAMPLE_NS:
            self.read_counters()

    def read_counters(self) -> None:
        """What sample() left for later."""
        if self._totals is None:
            return
        found, self._totals = self._totals(), None
        self._sampled_ns = time.monotonic_ns()
        if "moved_bytes" in found:
            label = Label(len(self.processes) - 1, "moved", "", NO_LAYER, COUNTERS, is_counter=True)
            totals = tuple(int(found.get(name, 0)) for name in COUNTERS)
            self._note(_Note(label, self._sampled_ns, self._sampled_ns, totals))

    def records(self, n: int) -> Iterator[np.ndarray]:
        """All in order, n at a time; spans come behind what they hold. Raises: OSError."""
        self._write_notes()
        self._file.seek(0)
        while held := self._file.read(n * RECORD.itemsize):
            yield np.frombuffer(held[: len(held) // RECORD.itemsize * RECORD.itemsize], RECORD)

    def close(self) -> None:
        with suppress(OSError):  # of what could not be written before
            self._file.close()

    def _note(self, note: _Job | _Note) -> None:
        self._notes.append(note)
        if len(self._notes) >= MOST_NOTES:
            self._write_notes()

    def _write_notes(self) -> None:
        notes, self._notes = self._notes, []
        parts = [
            self._job_bytes(each) if isinstance(each, _Job) else self._note_bytes(each) for each in notes
        ]
        try:
            self._file.write(b"".join(parts))
        except OSError as error:
            error.filename = self._target
            raise

    def _note_bytes(self, note: _Note) -> bytes:
        numbers = (*note.numbers, 0, 0)[:2]
        record = self._id(note.label), HOST, note.begin_ns, note.end_ns, *numbers
        return np.array([record], RECORD).tobytes()

    def _job_bytes(self, job: _Job) -> bytes:
        records, times = self._records_of(job), job.times[:, : len(job.stages)]
        records["begin_ns"], records["end_ns"], records["first"] = np.moveaxis(times, 2, 0)
        last = records[:, -1]
        ended_ns = last["end_ns"].max()
        last["first"] += ended_ns - last["end_ns"]
        last["end_ns"] = ended_ns
        return records.tobytes()

    def _records_of(self, job: _Job) -> np.ndarray:
        """Its records, but for the times."""
        process, within, stages, tracks, _ = job
        key = id(stages), tuple(tracks), process, within
        if key not in self._of_stages:
            names = "wait_ns", "bytes"
            records = np.zeros((len(tracks), len(stages)), RECORD)
            records["label"] = [
                self._id(Label(process, stage.name or within or "other", within, stage.layer, names))
                for stage in stages
            ]
            records["track"] = np.asarray(tracks)[:, None]
            records["second"] = [stage.n_bytes // len(tracks) for stage in stages]
            self._of_stages[key] = _Slices(stages, records)
        return self._of_stages[key].records

    def _id(self, label: Label) -> int:
        if label not in self._ids:
            self._ids[label] = len(self.labels)
            self.labels.append(label)
        return self._ids[label]


class Span:
    """Context manager: its block is a slice of the log."""

    __slots__ = ("_log", "_showed_stages", "_whole", "began_ns", "layer", "name", "numbers", "within")

    def __init__(self, log: TraceLog, name: str, layer: int, whole: bool, numbers: dict[str, int]) -> None:
        self._log, self.name, self.layer, self._whole, self.numbers = log, name, layer, whole, numbers

    def __enter__(self) -> None:
        log = self._log
        self.within, self._showed_stages = log.within, log.shows_stages
        log.within, log.shows_stages = self.name, log.shows_stages and not self._whole
        self.began_ns = time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.within, self._log.shows_stages = self.within, self._showed_stages
        self._log.end_span(self)
