"""Error objects as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from yakvrt.grammar import GrammarError
from yakvrt.terminal import note, one_line

RETRY_S = "1"
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    501: "not_supported_error",
    503: "unavailable_error",
    507: "storage_error",
}


class ApiError(Exception):
    """Ends a request with an error object. `code` is a word for programs, `param` the field that is wrong."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | int | None = None,
        param: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.more = status, code, param, more

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code, **self.more}
        return {"error": error}

    def response(self) -> Response:
        headers = {"Retry-After": RETRY_S} if self.status == 503 else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return json_response(self.body(), self.status, headers)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def of_failure(error: Exception) -> ApiError:
    """What a failed answer tells its client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, GrammarError):
        return ApiError(str(error), code="grammar_failed")
    return ApiError(one_line(error), status=500, code="generation_failed")


async def on_api_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of ApiError."""
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of unknown paths and methods."""
    assert isinstance(error, HTTPException)
    known = {
        404: f"there is no {request.url.path}; see the README for what is served",
        405: f"{request.url.path} does not take {request.method}",
    }
    message = known.get(error.status_code, error.detail)
    response = ApiError(message[:1000], status=error.status_code).response()
    response.headers.update(error.headers or {})
    return response


async def on_bug(request: Request, error: Exception) -> Response:
    """Starlette's handler of everything else; it raises the error again, for the log."""
    note(f"error: {request.method} {request.url.path[:200]!r}: {one_line(error)}")
    return ApiError("internal error; the server's log has more", status=500).response()
