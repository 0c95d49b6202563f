"""A recorded step on a GPU: its launches, replayed as a graph for each part."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass

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
from .stream import Event, Stream
from .upload_ring import UploadRing


@dataclass(frozen=True, slots=True)
class Ready:
    """A launch with its kernel on the device."""

    kernel: LoadedKernel
    grid: tuple[int, int]
    arguments: Arguments
    beside: bool


class CudaStep:
    """Fill `batch`, then run parts; nothing waits for the device but plain Python between the launches, and,
    with a `log`, whoever asks for a part, which is noted at its end.
    """

    def __init__(
        self, recorder: CudaRecorder, kernels: Kernels, ring: UploadRing, stream: Stream, side: Stream
    ) -> None:
        """ring: the batch's way to the device. side: for launches beside the others. Raises: DeviceError, and
        ValueError for a kernel that is missing.
        """
        self.batch: Batch = recorder.batch
        self._numbers, self._stream, self._side = recorder.batch_numbers, stream, side
        self._ring = ring
        self._parts = [[ready(piece, kernels) for piece in part] for part in recorder.parts]
        self._graphs: dict[int, Graph] = {}
        self.log: TraceLog | None = None
        self._timed: dict[int, tuple[Graph, StageClock]] = {}
        self._clocks: dict[int, StageClock] = {}  # of parts with plain Python
        self._forked, self._joined = Event(), Event()

    def run(self, part: int = 0) -> None:
        """Asks the stream for it; a piece of plain Python waits for what comes before it. An interrupted one
        (Ctrl-C) leaves nothing under way.
        """
        try:
            self._run(part)
        except BaseException:
            for stream in (self._side, self._stream):
                with suppress(DeviceError):
                    stream.synchronise()
            raise

    def _run(self, part: int) -> None:
        self._ring.upload(self._numbers)
        on_host = any(callable(piece) for piece in self._parts[part])
        if self.log and self.log.shows_stages:
            self._run_timed(part, self.log, on_host)
        elif on_host:
            self._ask(part)
        else:
            if part not in self._graphs:
                self._graphs[part] = self._captured(part)
            self._graphs[part].launch(self._stream)

    def _run_timed(self, part: int, log: TraceLog, on_host: bool) -> None:
        """The same with events between the stages, in a graph of its own."""
        if on_host:
            clock = self._clocks.setdefault(part, StageClock(self._stream, self._side, captured=False))
            try:
                self._ask(part, clock)
                self._stream.synchronise()
                clock.read(log)
            finally:
                clock.close()
            return
        if part not in self._timed:
            clock = StageClock(self._stream, self._side, captured=True)
            try:
                self._timed[part] = self._captured(part, clock), clock
            except BaseException:
                clock.close()
                raise
        graph, clock = self._timed[part]
        graph.launch(self._stream)
        self._stream.synchronise()
        clock.read(log)

    def _captured(self, part: int, clock: StageClock | None = None) -> Graph:
        graph = Graph()
        with graph.capture(self._stream):
            self._ask(part, clock)
        return graph

    def _ask(self, part: int, clock: StageClock | None = None) -> None:
        beside = False
        for piece in [*self._parts[part], Join()]:
            if isinstance(piece, Stage):
                if clock:
                    clock.begin(piece)
            elif isinstance(piece, Ready):
                if piece.beside and not beside:
                    self._side.wait(self._stream.record(self._forked))
                beside |= piece.beside
                if clock:
                    clock.launching(BESIDE if piece.beside else MAIN)
                piece.kernel.launch(self._side if piece.beside else self._stream, piece.grid, piece.arguments)
            elif isinstance(piece, Join):
                if beside:
                    self._join(clock)
                beside = False
            else:
                if clock:
                    clock.pause()
                self._stream.synchronise()
                named = self.log.span(*clock.stage[:2]) if clock and self.log else nullcontext()
                with named:
                    piece()
        if clock:
            clock.pause()

    def _join(self, clock: StageClock | None) -> None:
        if clock:
            clock.pause(BESIDE)
            since = clock.waiting()
        self._stream.wait(self._side.record(self._joined))
        if clock:
            clock.waited(since)

    def close(self) -> None:
        for graph, clock in self._timed.values():
            graph.close()
            clock.close()
        for graph in self._graphs.values():
            graph.close()
        self._forked.close()
        self._joined.close()


def ready(piece: Piece, kernels: Kernels) -> Ready | Join | Stage | Callable[[], None]:
    """Raises: as Kernels.load."""
    if not isinstance(piece, Launch):
        return piece
    loaded = kernels.load(piece.kernel)
    return Ready(loaded, piece.grid, loaded.arguments(*piece.arguments), piece.beside)
