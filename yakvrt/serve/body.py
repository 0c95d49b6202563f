"""Bodies of requests: bounded before they are read, then JSON objects."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
import numpy as np
from starlette.requests import ClientDisconnect, Request

from yakvrt.serve.errors import ApiError
from yakvrt.serve.fields import supported
from yakvrt.serve.settings import MAX_DEPTH, MAX_NODES, MAX_VALUES

T = TypeVar("T")
MAX_SHOWN = 300


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Raises: ApiError when it is longer, whether it says so or not."""

    def too_long(status: int = 413) -> ApiError:
        return ApiError(
            f"the request is longer than {max_bytes} bytes; send less or start the server with a larger "
            "--max-body-size",
            status=status,
            code="request_too_large",
        )

    told = request.headers.get("content-length", "")
    if told.isdecimal() and len(told) < 20 and int(told) > max_bytes:
        raise too_long()
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                raise too_long()
    except ClientDisconnect:
        raise ApiError("the client left") from None
    return bytes(body)


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The JSON object of a request. Raises: ApiError for anything else."""
    body = await read_body(request, max_bytes)
    check_values(body)
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise ApiError(f"the request's body is no JSON: {error}"[:MAX_SHOWN], code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError("the request's body must be a JSON object", code="invalid_json")
    check_depth(value)
    return value


def too_deep() -> ApiError:
    return ApiError(f"the request's JSON is nested more than {MAX_DEPTH} deep", code="invalid_json")


def check_values(body: bytes) -> None:
    """Raises: ApiError for JSON of so many values that reading it would take seconds, in which nothing else
    runs, and far more memory than its text.
    """
    most = {"lists and objects": (b"[{", MAX_NODES), "names": (b":", MAX_NODES), "values": (b",", MAX_VALUES)}
    if sum(body.count(mark) for mark in b"[{:,") < MAX_NODES:
        return  # most are in texts anyway
    outside = _outside_texts(body)
    for what, (marks, limit) in most.items():
        if sum(int(np.count_nonzero(outside == mark)) for mark in marks) > limit:
            raise ApiError(f"the request's JSON has more than {limit} {what}", code="invalid_json")


def _outside_texts(body: bytes) -> np.ndarray:
    """The bytes of JSON that are in none of its texts, and the quotes at their ends."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
    data = np.frombuffer(body, np.uint8)
    found: np.ndarray = data[np.cumsum(data == ord('"'), dtype=np.uint8) & 1 == 0]
    return found


def check_depth(value: Any) -> None:
    """Raises: ApiError where lists and objects nest too deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            inner = each.values() if isinstance(each, dict) else each
            below += [one for one in inner if isinstance(one, dict | list)]
        if not below:
            return
        level = below
    raise too_deep()


def as_struct(value: dict[str, Any], kind: type[T]) -> T:
    """The object as a struct of msgspec; null is the same as nothing.

    Raises: ApiError naming the field that is wrong, unknown, or would change the output and is not supported.
    """
    given = supported(value, [one.encode_name for one in msgspec.structs.fields(kind)])  # type: ignore[arg-type]
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        found = re.search(r"`\$\.([^`]*)`$", message)
        param = found[1] if found else None
        if missing := re.search(r"missing required field `(\w+)`", message):
            param = f"{param}.{missing[1]}" if param else missing[1]
        raise ApiError(message[:MAX_SHOWN], param=param) from None
