"""A model behind the server's own application: answers and refusals are the server's."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from yakvrt.batch.asgi import post
from yakvrt.batch.requests import MAX_LINE_BYTES
from yakvrt.serve.app import make_app
from yakvrt.serve.errors import ApiError
from yakvrt.serve.service import Service
from yakvrt.serve.settings import Settings
from yakvrt.serve.verb import load_model
from yakvrt.trace_file import Tracing

MAX_WAITING = 1_000_000  # what is under way is bounded by those who ask


class ModelFailedError(RuntimeError):
    """It answers nothing any more; that is no request's fault, or nobody knows whose."""


class Streamed(msgspec.Struct):
    """Whether a body asks for a stream."""

    stream: Any = None


class Answerer:
    """Loads the model that the flags ask for.

    Raises: ValueError, OSError, RuntimeError as loading does.
    """

    def __init__(self, args: argparse.Namespace, overrides: dict[str, object]) -> None:
        settings = Settings(
            name=args.alias or "",
            max_body_bytes=MAX_LINE_BYTES,
            max_waiting=MAX_WAITING,
            timeout_s=0.0,
            cache_bytes=args.cache_ram << 20,
            has_page=False,
            has_metrics=False,
            has_slots=False,
        )
        self._service = Service(settings)
        self._service.provide(load_model(args, settings, overrides, Tracing(None)))
        self._app = make_app(self._service)

    @property
    def name(self) -> str:
        """Of the model, as answers tell it."""
        return self._service.model.name

    async def answer(self, url: str, body: bytes) -> tuple[int, bytes]:
        """The status and the JSON of the answer. Raises: ModelFailedError."""
        if _is_streamed(body):
            refused = ApiError("a batch holds whole answers; leave stream out", param="stream")
            return refused.status, msgspec.json.encode(refused.body())
        found = await post(self._app, url, body)
        loaded = self._service.loaded
        if loaded and loaded.scheduler.failure:
            raise ModelFailedError(f"the model has failed: {loaded.scheduler.failure}")
        return found

    def close(self) -> None:
        self._service.close()


def _is_streamed(body: bytes) -> bool:
    try:
        return msgspec.json.decode(body, type=Streamed).stream is True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # the application says what is wrong with it
