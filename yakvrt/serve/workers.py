"""Threads for what would hold the streams up: a few for each kind of work, so that none waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, ParamSpec, TypeVar

from yakvrt.serve.errors import ApiError

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """`n_threads` calls at a time, and max_waiting more that wait. `what` names them in a sentence."""

    def __init__(self, what: str, n_threads: int, max_waiting: int) -> None:
        self._what, self._most = what, n_threads + max_waiting
        self._threads = ThreadPoolExecutor(n_threads, f"yakvrt-{what}")
        self._n_held = 0
        self._is_closed = False
        self._lock = Lock()

    async def run(self, work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
        """What the call returns or raises. Raises: ApiError when too many wait already, and once closed."""
        closing = ApiError("the server is shutting down", status=503, code="shutting_down")
        with self._lock:
            if self._is_closed:
                raise closing
            if self._n_held >= self._most:
                raise ApiError(
                    f"too many {self._what} are waiting; try again later", status=503, code="overloaded"
                )
            self._n_held += 1
            future = self._threads.submit(work, *args, **more)
        future.add_done_callback(self._ended)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._is_closed:
                raise closing from None
            raise

    def _ended(self, _: Future[Any]) -> None:
        with self._lock:
            self._n_held -= 1

    def close(self) -> None:
        """Begins nothing more."""
        with self._lock:
            self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
