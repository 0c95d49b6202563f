"""How many bytes of bodies all requests may hold together: connections times the longest body is too much."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yakvrt.serve.errors import ApiError


class BodyBudget:
    """ASGI middleware. What a body holds is given back when its request is answered."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._left = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = 0

        async def counted() -> Message:
            nonlocal held
            message = await receive()
            n = len(message.get("body", b""))
            if n > self._left:
                raise ApiError(
                    "too many long requests are under way; try again later", status=503, code="overloaded"
                )
            self._left -= n
            held += n
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._left += held
