"""Streams, which do in order what they are asked, and events, which mark a point in them."""

from __future__ import annotations

from typing import Any

from .driver import call, constant


class Event:
    """A point in a stream, with its time."""

    def __init__(self) -> None:
        self.handle: Any = call("cuEventCreate", constant("CUevent_flags", "CU_EVENT_DEFAULT"))

    def synchronise(self) -> None:
        """Waits until all that was asked of the stream before it is done."""
        call("cuEventSynchronize", self.handle)

    def ms_since(self, earlier: Event) -> float:
        """Raises: DeviceError where one of both was not reached yet."""
        return float(call("cuEventElapsedTime", earlier.handle, self.handle))

    def close(self) -> None:
        call("cuEventDestroy", self.handle)


class Stream:
    """A queue of copies and launches that waits for no other. Threads may use it in turn."""

    def __init__(self) -> None:
        self._context: Any = call("cuCtxGetCurrent")
        self._handle: Any = call("cuStreamCreate", constant("CUstream_flags", "CU_STREAM_NON_BLOCKING"))

    def enter(self) -> None:
        """Makes the stream's context that of the thread that calls, whatever others made of it. Raises:
        RuntimeError once closed.
        """
        if self._handle is None:
            raise RuntimeError("the model is closed; load it again")
        call("cuCtxSetCurrent", self._context)

    @property
    def handle(self) -> Any:
        """For a call of this thread. Raises: RuntimeError once closed."""
        self.enter()
        return self._handle

    def record(self, event: Event, *, timed_by_graph: bool = False) -> Event:
        """Marks what was asked so far. timed_by_graph: while a graph is captured, which then tells the time
        whenever it comes by; otherwise an event only orders streams there.
        """
        if timed_by_graph:
            external = constant("CUevent_record_flags", "CU_EVENT_RECORD_EXTERNAL")
            call("cuEventRecordWithFlags", event.handle, self.handle, external)
        else:
            call("cuEventRecord", event.handle, self.handle)
        return event

    def wait(self, event: Event) -> None:
        """What is asked from now on is done after the event's point, which may lie in another stream."""
        call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def synchronise(self) -> None:
        call("cuStreamSynchronize", self.handle)

    def close(self) -> None:
        """What was asked is still done."""
        call("cuStreamDestroy", self.handle)
        self._handle = None
