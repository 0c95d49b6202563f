"""A recorded step on a GPU: its launches, replayed as a graph for each part."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ..ops import Batch
from .arguments import Arguments
from .device_kernels import Kernels
from .driver import DeviceError
from .graph import Graph
from .loaded_kernel import LoadedKernel
from .recorder import CudaRecorder, Join, Launch, Piece
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
    """Fill `batch`, then run parts; nothing waits for the device but plain Python between the launches."""

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
        if any(callable(piece) for piece in self._parts[part]):
            self._ask(part)
            return
        if part not in self._graphs:
            graph = Graph()
            with graph.capture(self._stream):
                self._ask(part)
            self._graphs[part] = graph
        self._graphs[part].launch(self._stream)

    def _ask(self, part: int) -> None:
        beside = False
        for piece in [*self._parts[part], Join()]:
            if isinstance(piece, Ready):
                if piece.beside and not beside:
                    self._side.wait(self._stream.record(self._forked))
                beside |= piece.beside
                piece.kernel.launch(self._side if piece.beside else self._stream, piece.grid, piece.arguments)
            elif isinstance(piece, Join):
                if beside:
                    self._stream.wait(self._side.record(self._joined))
                beside = False
            else:
                self._stream.synchronise()
                piece()

    def close(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._forked.close()
        self._joined.close()


def ready(piece: Piece, kernels: Kernels) -> Ready | Join | Callable[[], None]:
    """Raises: as Kernels.load."""
    if not isinstance(piece, Launch):
        return piece
    loaded = kernels.load(piece.kernel)
    return Ready(loaded, piece.grid, loaded.arguments(*piece.arguments), piece.beside)
