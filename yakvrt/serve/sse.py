"""Answers as server-sent events, chunk by chunk as they grow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from yakvrt.request import Piece, Request
from yakvrt.serve.answers import Answers, unless_left
from yakvrt.serve.errors import of_failure

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
PING, DONE = b": ping\n\n", b"data: [DONE]\n\n"


class Choice(Protocol):
    """One answer, as the API at hand tells it."""

    def opening(self) -> Iterable[dict[str, Any]]:
        """What a stream says of it before there is any text."""

    def grown(self, piece: Piece) -> Iterable[dict[str, Any]]:
        """What it says of a piece."""

    def closing(self) -> Iterable[dict[str, Any]]:
        """What it says at the end; the last names the finish reason."""

    def whole(self) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""


class EventStream(Response):
    """Streams the chunks of all answers until the last has ended. They end when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, choices: Sequence[Choice], kind: str, *, has_usage: bool) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._answers, self._choices, self._has_usage = answers, choices, has_usage
        self._head = answers.head(kind)
        self._sending = asyncio.Lock()
        self._n_left = len(choices)
        self._last_sent = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_left(receive, self._stream(send))
        finally:
            self._answers.close()

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pinging = asyncio.ensure_future(self._ping(send))
        try:
            async with asyncio.TaskGroup() as group:
                for choice, request in zip(self._choices, self._answers.requests, strict=True):
                    group.create_task(self._tell(choice, request, send))
        except* Exception as errors:
            await self._send(send, of_failure(first_error(errors)).body())
        else:
            if self._has_usage:
                usage = {"choices": [], "usage": self._answers.usage(), **self._answers.measures()}
                await self._send(send, self._head | usage)
        finally:
            pinging.cancel()
        await send({"type": "http.response.body", "body": DONE, "more_body": False})

    async def _tell(self, choice: Choice, request: Request, send: Send) -> None:
        for each in choice.opening():
            await self._send_choice(send, each)
        async for piece in request.pieces_async():
            for each in choice.grown(piece):
                await self._send_choice(send, each)
        *others, last = choice.closing()
        for each in others:
            await self._send_choice(send, each)
        self._n_left -= 1
        more = {} if self._n_left or self._has_usage else self._answers.measures()
        await self._send_choice(send, last, more)

    async def _send_choice(
        self, send: Send, choice: dict[str, Any], more: dict[str, Any] | None = None
    ) -> None:
        chunk = self._head | {"choices": [choice]} | (more or {})
        await self._send(send, chunk | {"usage": None} if self._has_usage else chunk)

    async def _send(self, send: Send, value: dict[str, Any]) -> None:
        await self._send_bytes(send, b"data: " + msgspec.json.encode(value) + b"\n\n")

    async def _send_bytes(self, send: Send, data: bytes) -> None:
        async with self._sending:
            self._last_sent = time.monotonic()
            await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _ping(self, send: Send) -> None:
        """Keeps connections alive while a prompt waits or is taken in."""
        pause = self._answers.service.settings.ping_s
        while pause:
            await asyncio.sleep(max(self._last_sent + pause - time.monotonic(), 0.01))
            if time.monotonic() >= self._last_sent + pause:
                await self._send_bytes(send, PING)


def first_error(group: BaseExceptionGroup[Exception]) -> Exception:
    """An error of the group that is no group."""
    error = group.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error
