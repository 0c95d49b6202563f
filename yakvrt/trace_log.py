"""What runs when, noted while it runs: slices of threads or streams, and counters, for trace_file.py.

Records of one size go to a file that has no name, so that memory stays as it is however long a run takes,
and nothing is left of one that is killed. 40 bytes a slice: 12 KB for a token of a model of 30 layers on two
threads.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
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


class _Slices(NamedTuple):
    """Records [tracks, stages] and views of them for the times; the stages are kept so that no others get
    their id.
    """

    stages: Sequence[Stage]
    records: np.ndarray
    begin_ns: np.ndarray
    end_ns: np.ndarray
    waited_ns: np.ndarray


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
        self._ids: dict[Label, int] = {}
        self._of_stages: dict[tuple[int, tuple[int, ...], int, str], _Slices] = {}
        self._spans: list[str] = []
        self.shows_stages = True
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=BUFFER_BYTES)  # noqa: SIM115 (close())
        except OSError as error:
            error.filename = target
            raise
        self._one = np.zeros(1, RECORD)
        self._totals: Totals | None = None
        self._sampled_ns = 0

    def begin_process(self, name: str) -> None:
        """What follows is shown under this name."""
        self.processes.append(name)

    def name_track(self, track: int, name: str) -> None:
        self.tracks[len(self.processes) - 1, track] = name

    @contextmanager
    def span(
        self, name: str, layer: int = NO_LAYER, *, whole: bool = False, **numbers: int
    ) -> Iterator[None]:
        """The block is a slice on the host's track, with up to two numbers; see Trace."""
        within, shows_stages = self._within, self.shows_stages
        began_ns = time.monotonic_ns()
        self._spans.append(name)
        self.shows_stages = shows_stages and not whole
        try:
            yield
        finally:
            self._spans.pop()
            self.shows_stages = shows_stages
            label = self._label(name, within, layer, tuple(numbers), is_span=True)
            self._write(label, began_ns, time.monotonic_ns(), *numbers.values())

    def slices(self, stages: Sequence[Stage], tracks: tuple[int, ...], times: np.ndarray) -> None:
        """Slices of some tracks, each of which had a share of all stages. `stages` stay as they are.

        Shapes: times int64 [tracks, stages, 3]: when each began and ended, and what it waited in between.
        """
        known = self._known(stages, tracks)
        known.begin_ns[...], known.end_ns[...], known.waited_ns[...] = (
            times[..., 0],
            times[..., 1],
            times[..., 2],
        )
        self._put(known.records)

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
        if "moved_bytes" not in found:
            return
        label = self._label("moved", "", NO_LAYER, COUNTERS, is_counter=True)
        self._write(
            label, self._sampled_ns, self._sampled_ns, *(int(found.get(name, 0)) for name in COUNTERS)
        )

    def records(self, n: int) -> Iterator[np.ndarray]:
        """All in order, n at a time; spans come behind what they hold. Raises: OSError."""
        self._file.seek(0)
        while held := self._file.read(n * RECORD.itemsize):
            yield np.frombuffer(held[: len(held) // RECORD.itemsize * RECORD.itemsize], RECORD)

    def close(self) -> None:
        with suppress(OSError):  # of what could not be written before
            self._file.close()

    @property
    def _within(self) -> str:
        return self._spans[-1] if self._spans else ""

    def _write(self, label: int, begin_ns: int, end_ns: int, first: int = 0, second: int = 0) -> None:
        self._one[0] = label, HOST, begin_ns, end_ns, first, second
        self._put(self._one)

    def _put(self, records: np.ndarray) -> None:
        try:
            self._file.write(records.tobytes())
        except OSError as error:
            error.filename = self._target
            raise

    def _known(self, stages: Sequence[Stage], tracks: tuple[int, ...]) -> _Slices:
        """Their records, but for the times."""
        key = id(stages), tracks, len(self.processes), self._within
        if key not in self._of_stages:
            names = "wait_ns", "bytes"
            within = self._within
            labels = [
                self._label(stage.name or within or "other", within, stage.layer, names) for stage in stages
            ]
            records = np.zeros((len(tracks), len(stages)), RECORD)
            records["label"], records["track"] = labels, np.asarray(tracks)[:, None]
            records["second"] = [stage.n_bytes // len(tracks) for stage in stages]
            times = records["begin_ns"], records["end_ns"], records["first"]
            self._of_stages[key] = _Slices(stages, records, *times)
        return self._of_stages[key]

    def _label(
        self,
        name: str,
        within: str,
        layer: int,
        numbers: tuple[str, ...],
        *,
        is_span: bool = False,
        is_counter: bool = False,
    ) -> int:
        label = Label(len(self.processes) - 1, name, within, layer, numbers, is_span, is_counter)
        if label not in self._ids:
            self._ids[label] = len(self.labels)
            self.labels.append(label)
        return self._ids[label]
