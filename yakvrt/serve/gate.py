"""Who may ask: the Host and Origin that browsers name, and the API key; checked before a body is read."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yakvrt.serve.errors import ApiError
from yakvrt.serve.settings import MAX_HEAD_BYTES, Settings

OPEN = ("/health", "/v1/health", "/")  # without a key: they tell nothing of the model or of anybody's text
SAFE = ("GET", "HEAD", "OPTIONS")


class Gate:
    """ASGI middleware. `responded` is told the status of every response."""

    def __init__(self, app: ASGIApp, settings: Settings, responded: Callable[[int], None]) -> None:
        self._app, self._settings, self._responded = app, settings, responded
        self._keys = [key.encode() for key in settings.api_keys]
        self._hosts = {name.lower() for name in settings.allowed_hosts}
        self._is_local = is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._responded(message["status"])
            await send(message)

        try:
            self._check(scope)
        except ApiError as error:
            await error.response()(scope, receive, counted)
            return
        await self._app(scope, receive, counted)

    def _check(self, scope: Scope) -> None:
        # The parser bounds a head only while it is incomplete.
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD_BYTES:
            raise ApiError(
                f"the request's head is longer than {MAX_HEAD_BYTES} bytes", code="request_too_large"
            )
        headers = Headers(scope=scope)
        host = headers.get("host")
        if host is not None and not self._is_known_host(host):  # HTTP/1.0 may have none, browsers always do
            # A web page whose name was made to mean this machine (DNS rebinding) asks with that name.
            raise ApiError(
                f"the request is for host {host[:100]!r}, which this is not; name it with --allowed-hosts",
                status=403,
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in SAFE and not self._is_allowed(origin, host):
            raise ApiError(
                f"web pages of {origin[:100]!r} may not use this server; allow them with --cors-origins",
                status=403,
                code="origin_not_allowed",
            )
        if self._keys and scope["path"] not in OPEN and not self._has_key(headers):
            raise ApiError("the API key is missing or wrong", status=401, code="invalid_api_key")

    def _is_known_host(self, host: str) -> bool:
        name = hostname(host)
        takes_any = not self._hosts and not self._is_local
        return takes_any or name in self._hosts or is_loopback(name)

    def _is_allowed(self, origin: str, host: str | None) -> bool:
        """Whether the page is this server's own, or one of --cors-origins."""
        allowed = self._settings.cors_origins
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        return "*" in allowed or origin in allowed or origin.lower() in own

    def _has_key(self, headers: Headers) -> bool:
        """Takes equally long whatever is wrong with the key."""
        told = headers.get("authorization", "")
        given = told[7:].strip() if told[:7].lower() == "bearer " else headers.get("x-api-key", "")
        key = given.encode("latin-1", "replace")
        return sum(hmac.compare_digest(key, known) for known in self._keys) > 0


def hostname(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(name: str) -> bool:
    """Whether only this machine answers to the name."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
