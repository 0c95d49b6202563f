"""A recorded step on a GPU: its launches, replayed as a graph for each part."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..ops import Batch
from .arguments import Arguments
from .device_kernels import Kernels
from .graph import Graph
from .loaded_kernel import LoadedKernel
from .stream import Stream
from .upload_ring import UploadRing

if TYPE_CHECKING:
    from .recorder import CudaRecorder, Piece

Ready = tuple[LoadedKernel, tuple[int, int], Arguments]


class CudaStep:
    """Fill `batch`, then run parts; nothing waits for the device but plain Python between the launches."""

    def __init__(self, recorder: CudaRecorder, kernels: Kernels, stream: Stream) -> None:
        """Raises: DeviceError, and ValueError for a kernel that is missing."""
        self.batch: Batch = recorder.batch
        self._numbers, self._stream = recorder.batch_numbers, stream
        self._ring = UploadRing(recorder.device_numbers, stream)
        self._parts = [[ready(piece, kernels) for piece in part] for part in recorder.parts]
        self._graphs: dict[int, Graph] = {}

    def run(self, part: int = 0) -> None:
        """Asks the stream for it; a piece of plain Python waits for what comes before it."""
        self._ring.upload(self._numbers)
        pieces = self._parts[part]
        launches = [piece for piece in pieces if isinstance(piece, tuple)]
        if len(launches) == len(pieces):
            self._graph(part, launches).launch(self._stream)
            return
        for piece in pieces:
            if isinstance(piece, tuple):
                self._launch(piece)
            else:
                self._stream.synchronise()
                piece()

    def _graph(self, part: int, launches: list[Ready]) -> Graph:
        if part not in self._graphs:
            graph = Graph()
            with graph.capture(self._stream):
                for each in launches:
                    self._launch(each)
            self._graphs[part] = graph
        return self._graphs[part]

    def _launch(self, piece: Ready) -> None:
        loaded, grid, arguments = piece
        loaded.launch(self._stream, grid, arguments)

    def close(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._ring.free()


def ready(piece: Piece, kernels: Kernels) -> Ready | Callable[[], None]:
    """A launch with its kernel on the device. Raises: as Kernels.load."""
    if callable(piece):
        return piece
    loaded = kernels.load(piece.kernel)
    return loaded, piece.grid, loaded.arguments(*piece.arguments)
