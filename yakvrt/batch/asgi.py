"""A request to an ASGI application in this process, without a socket."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Scope


async def post(app: ASGIApp, path: str, body: bytes) -> tuple[int, bytes]:
    """The status and the body of the response to JSON. Raises: what the application raises unanswered."""
    head = ((b"host", b"localhost"), (b"content-type", b"application/json"))
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [*head, (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
    }
    unread = [body]
    status = 0
    parts = bytearray()

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await asyncio.Future()  # nobody leaves
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.extend(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except Exception:
        if not status:
            raise
        # A bug: the application has noted it and answered, and raises it for a server's log.
    return status, bytes(parts)
