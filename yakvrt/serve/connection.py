"""Connections that are slow, or too many, are cut: an HTTP/1.1 protocol for uvicorn with limits on time."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from yakvrt.serve.errors import ApiError
from yakvrt.serve.settings import REQUEST_S, UNREAD_S

REFUSAL_S = 2.0  # for a connection too many to say what it wants


class BoundedProtocol(H11Protocol):
    """A request must arrive whole in REQUEST_S seconds, and a client must read within UNREAD_S.

    uvicorn bounds neither. Its own limit on concurrency would refuse the requests of old connections too.
    """

    max_connections = 512
    _arriving: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        is_too_many = len(self.connections) > self.max_connections
        if is_too_many:
            self.app = refuse
        self._expect(REFUSAL_S if is_too_many else REQUEST_S)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            self._expect(REQUEST_S)
        elif self._arriving:
            self._arriving.cancel()
            self._arriving = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._arriving, self._unread):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:
            self._unread.cancel()
            self._unread = None

    def _expect(self, seconds: float) -> None:
        """The rest of a request."""
        if self._arriving is None:
            self._arriving = self.loop.call_later(seconds, self.transport.abort)


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of connections that are too many."""
    error = ApiError("too many connections; try again later", status=503, code="too_many_connections")
    response = error.response()
    response.headers["Connection"] = "close"
    await response(scope, receive, send)


def bounded_protocol(max_connections: int) -> type[asyncio.Protocol]:
    """The protocol with a limit of its own, as uvicorn makes its instances itself."""
    values: dict[str, Any] = {"max_connections": max_connections}
    return type("BoundedProtocol", (BoundedProtocol,), values)
