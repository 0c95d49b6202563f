"""Launches that the driver replays as one: a CUDA graph, captured from streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .driver import DeviceError, call, constant
from .stream import Stream


class Graph:
    """What was asked of a stream inside capture(), and of others that wait for it there."""

    def __init__(self) -> None:
        self._executable: Any = None

    @contextmanager
    def capture(self, stream: Stream) -> Iterator[None]:
        """Inside, what is asked of the stream is not done but noted; forgotten, where it is interrupted.
        Raises: DeviceError.
        """
        mode = constant("CUstreamCaptureMode", "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")
        graph = None
        try:
            call("cuStreamBeginCapture", stream.handle, mode)
            yield
            graph = call("cuStreamEndCapture", stream.handle)
            self._executable = call("cuGraphInstantiate", graph, 0)
        except BaseException:
            if graph is None:
                with suppress(DeviceError):  # streams that were to be joined still are not, or nothing began
                    graph = call("cuStreamEndCapture", stream.handle)
            raise
        finally:
            if graph is not None:
                call("cuGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        """Asks a stream for all of it; after what was asked before."""
        call("cuGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        if self._executable is not None:
            call("cuGraphExecDestroy", self._executable)
            self._executable = None
