"""A recorded step on a GPU: its launches, replayed as a graph for each part."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import chain

from ..ops import Batch
from ..trace_log import TraceLog
from ..trace_records import Stage
from .arguments import Arguments
from .device_kernels import Kernels
from .driver import DeviceError
from .graph import Graph
from .loaded_kernel import LoadedKernel
from .recorder import CudaRecorder, Join, Launch, Piece
from .stage_clock import BESIDE, MAIN, StageClock
from .stream import Event
from .streams import Streams
from .upload_ring import UploadRing


@dataclass(frozen=True, slots=True)
class Ready:
    """A launch with its kernel on the device; `done`: the end of one beside the others."""

    kernel: LoadedKernel
    grid: tuple[int, int]
    arguments: Arguments
    done: Event | None


class CudaStep:
    """Fill `batch`, then run parts; nothing waits for the device but plain Python between the launches, and,
    with a `log`, whoever asks for a part, which is noted at its end.
    """

    def __init__(self, recorder: CudaRecorder, kernels: Kernels, ring: UploadRing, streams: Streams) -> None:
        """ring: the batch's way to the device. Raises: DeviceError, and ValueError for a kernel that is
        missing.
        """
        self.batch: Batch = recorder.batch
        self._numbers, self._streams = recorder.batch_numbers, streams
        self._ring = ring
        self._parts = [[ready(piece, kernels) for piece in part] for part in recorder.parts]
        # of parts in a row: the first, and how many
        self._graphs: dict[tuple[int, int], Graph] = {}
        self.log: TraceLog | None = None
        self._timed: dict[tuple[int, int], tuple[Graph, StageClock]] = {}
        self._clocks: dict[tuple[int, int], StageClock] = {}  # of parts with plain Python
        self._forked = Event()

    def run(self, part: int = 0, n_parts: int = 1) -> None:
        """Asks the stream for them, as one graph; a piece of plain Python waits for what comes before it. If
        interrupted (Ctrl-C), it leaves nothing under way.
        """
        try:
            self._run((part, n_parts))
        except BaseException:
            for stream in (self._streams.side, self._streams.now):
                with suppress(DeviceError):
                    stream.synchronise()
            raise

    def _pieces(self, parts: tuple[int, int]) -> Iterator[Ready | Join | Stage | Callable[[], None]]:
        first, n = parts
        for part in self._parts[first : first + n]:
            yield from part
            yield from (Join() for piece in part if isinstance(piece, Ready) and piece.done)

    def _run(self, parts: tuple[int, int]) -> None:
        self._ring.upload(self._numbers, self._streams.now)
        if self.log and self.log.shows_stages:
            self._run_timed(parts, self.log, self._is_on_host(parts))
        elif parts not in self._graphs and self._is_on_host(parts):
            self._ask(parts)
        else:
            if parts not in self._graphs:
                self._graphs[parts] = self._captured(parts)
            self._graphs[parts].launch(self._streams.now)

    def _is_on_host(self, parts: tuple[int, int]) -> bool:
        """Whether there is plain Python between the launches."""
        return any(callable(piece) for piece in self._pieces(parts))

    def _run_timed(self, parts: tuple[int, int], log: TraceLog, on_host: bool) -> None:
        """The same with events between the stages, in a graph of its own."""
        if on_host:
            clock = self._clocks.setdefault(
                parts, StageClock(self._streams.now, self._streams.side, captured=False)
            )
            try:
                self._ask(parts, clock)
                self._streams.now.synchronise()
                clock.read(log)
            finally:
                clock.close()
            return
        if parts not in self._timed:
            clock = StageClock(self._streams.now, self._streams.side, captured=True)
            try:
                self._timed[parts] = self._captured(parts, clock), clock
            except BaseException:
                clock.close()
                raise
        graph, clock = self._timed[parts]
        graph.launch(self._streams.now)
        self._streams.now.synchronise()
        clock.read(log)

    def _captured(self, parts: tuple[int, int], clock: StageClock | None = None) -> Graph:
        graph = Graph()
        with graph.capture(self._streams.now):
            self._ask(parts, clock)
        return graph

    def _ask(self, parts: tuple[int, int], clock: StageClock | None = None) -> None:
        stream, side, under_way = self._streams.now, self._streams.side, deque[Event]()
        for piece in self._pieces(parts):
            if isinstance(piece, Stage):
                if clock:
                    clock.begin(piece)
            elif isinstance(piece, Ready):
                if piece.done:
                    side.wait(stream.record(self._forked))
                if clock:
                    clock.launching(BESIDE if piece.done else MAIN)
                piece.kernel.launch(side if piece.done else stream, piece.grid, piece.arguments)
                if piece.done:
                    if clock:
                        clock.pause(BESIDE)
                    under_way.append(side.record(piece.done))
            elif isinstance(piece, Join):
                if under_way:
                    self._join(under_way.popleft(), clock)
            else:
                if clock:
                    clock.pause()
                self._streams.now.synchronise()
                named = self.log.span(*clock.stage[:2]) if clock and self.log else nullcontext()
                with named:
                    piece()
        if clock:
            clock.pause()

    def _join(self, done: Event, clock: StageClock | None) -> None:
        since = clock.waiting() if clock else None
        self._streams.now.wait(done)
        if clock and since:
            clock.waited(since)

    def close(self) -> None:
        for graph, clock in self._timed.values():
            graph.close()
            clock.close()
        for graph in self._graphs.values():
            graph.close()
        for piece in chain(*self._parts):
            if isinstance(piece, Ready) and piece.done:
                piece.done.close()
        self._forked.close()


def ready(piece: Piece, kernels: Kernels) -> Ready | Join | Stage | Callable[[], None]:
    """Raises: as Kernels.load."""
    if not isinstance(piece, Launch):
        return piece
    loaded = kernels.load(piece.kernel)
    return Ready(loaded, piece.grid, loaded.arguments(*piece.arguments), Event() if piece.beside else None)
