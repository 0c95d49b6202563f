"""One request to a scheduler, as its caller sees it: text to iterate, from any thread or asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from .draw import Draw, Next
    from .generation import FinishReason, Generation
    from .sampler import Sampled

EndReason = Literal["stop", "length", "abort", "deadline"]


class Piece(NamedTuple):
    """A piece of text, and how many ids had been sampled when it was complete."""

    text: str
    n_ids: int


class Request:
    """Made by Scheduler.submit(). Iterate it for pieces of text, with `for` or `async for`; every reader gets
    all of them. Readers that are slow, or leave, hold nobody up; abort() when nobody reads.

    finish_reason is None until the end: "stop", "length", "abort", or "deadline". Iterating and result()
    raise the error when the request failed. `kv` is then what its slot held and, over all slots since the
    engine was loaded, what the KV method moved; it is empty when the request never had a slot.
    """

    def __init__(
        self, prompt_ids: list[int], generation: Generation, deadline: float | None, name: str = ""
    ) -> None:
        self.prompt_ids, self.deadline, self.name = prompt_ids, deadline, name
        self.finish_reason: EndReason | None = None
        self.error: Exception | None = None
        self.kv: dict[str, Any] = {}
        self._generation = generation
        self._pieces: list[Piece] = []
        self._aborted = False
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []
        self._end_listeners: list[Callable[[], None]] = []
        self._submitted = time.perf_counter()
        self._began = self._first = self._ended = 0.0  # its prompt, its first token, the end
        self._cache_n = 0
        self.slot: int | None = None  # its last, once it has one

    @property
    def ids(self) -> list[int]:
        """Every sampled id so far, an end-of-text id included."""
        return self._generation.ids

    @property
    def logprobs(self) -> list[Sampled] | None:
        """One for every id, where the parameters ask for them."""
        return self._generation.logprobs

    @property
    def seed(self) -> int:
        return self._generation.seed

    @property
    def text(self) -> str:
        """All pieces so far."""
        return "".join(piece.text for piece in tuple(self._pieces))

    @property
    def timings(self) -> dict[str, float]:
        """llama.cpp's fields (see Sequence.timings); other requests' steps count where this one waited for
        them. waiting_ms is the time before its prompt began, ttft_ms counts it.
        """
        now = self._ended or time.perf_counter()
        prompt_s = (self._first or now) - self._began if self._began else 0.0
        predicted_s = now - self._first if self._first else 0.0
        prompt_n = len(self.prompt_ids) - self._cache_n if self._first else 0
        steps = max(len(self.ids) - 1, 0)
        return {
            "waiting_ms": ((self._began or now) - self._submitted) * 1e3,
            "cache_n": self._cache_n,
            "prompt_n": prompt_n,
            "prompt_ms": prompt_s * 1e3,
            "prompt_per_token_ms": prompt_s * 1e3 / prompt_n if prompt_n else 0.0,
            "prompt_per_second": prompt_n / prompt_s if prompt_n else 0.0,
            "predicted_n": len(self.ids),
            "predicted_ms": predicted_s * 1e3,
            "predicted_per_token_ms": predicted_s * 1e3 / steps if steps else 0.0,
            "predicted_per_second": steps / predicted_s if steps and predicted_s else 0.0,
            "ttft_ms": (self._first - self._submitted) * 1e3 if self._first else 0.0,
        }

    @property
    def phases(self) -> dict[str, tuple[float, float]]:
        """When it waited, had its prompt taken in and answered, as far as it came: begin and end by
        time.perf_counter(), once it has ended.
        """
        found = {}
        names, times = ("waiting", "prompt", "answer"), (self._submitted, self._began, self._first)
        for name, began, ended in zip(names, times, (*times[1:], 0.0), strict=True):
            if began:
                found[name] = began, ended or self._ended
        return found

    def abort(self) -> None:
        """Ends it within a step; what came so far stays."""
        self._aborted = True

    def result(self, timeout: float | None = None) -> str:
        """Waits for the end. Returns: the whole text. Raises: TimeoutError; the request's error."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.finish_reason or self.error, timeout):
                raise TimeoutError(f"the answer is not complete after {timeout} s")
        if self.error:
            raise self.error
        return self.text

    def __iter__(self) -> Iterator[str]:
        return (piece.text for piece in self.pieces())

    def pieces(self) -> Iterator[Piece]:
        """What iterating gives, with the number of ids."""
        place = 0
        while True:
            with self._changed:
                while len(self._pieces) == place and not self._is_over:
                    self._changed.wait()
                new, ended = self._pieces[place:], self._is_over
            place += len(new)
            yield from new
            if ended:
                break
        if self.error:
            raise self.error

    async def __aiter__(self) -> AsyncIterator[str]:
        async for piece in self.pieces_async():
            yield piece.text

    async def pieces_async(self) -> AsyncIterator[Piece]:
        """pieces() for asyncio."""
        loop, news, place = asyncio.get_running_loop(), asyncio.Event(), 0

        def listener() -> None:
            loop.call_soon_threadsafe(news.set)

        with self._changed:
            self._listeners.append(listener)
        try:
            while True:
                news.clear()
                with self._changed:
                    new, ended = self._pieces[place:], self._is_over
                place += len(new)
                for piece in new:
                    yield piece
                if ended:
                    break
                if not new:
                    await news.wait()
        finally:
            with self._changed:
                self._listeners.remove(listener)
        if self.error:
            raise self.error

    async def wait(self) -> None:
        """Until the end, without a look at the pieces. Raises: the request's error."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def listener() -> None:
            loop.call_soon_threadsafe(over.set)

        with self._changed:
            self._end_listeners.append(listener)
            if self._is_over:
                over.set()
        try:
            await over.wait()
        finally:
            with self._changed:
                self._end_listeners.remove(listener)
        if self.error:
            raise self.error

    @property
    def _is_over(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    # What follows is for the scheduler's thread.

    def early_end(self, now: float) -> EndReason | None:
        """Why it has to end although the answer goes on, if it does; now is of time.monotonic()."""
        if self._aborted:
            return "abort"
        return "deadline" if self.deadline is not None and now >= self.deadline else None

    def begin(self, slot: int, cache_n: int) -> None:
        """Its prompt is taken in from now on, the first cache_n tokens of which are known."""
        self._began, self._cache_n, self.slot = time.perf_counter(), cache_n, slot

    def draw(self) -> Draw | None:
        """By what the next token may be drawn where its logits lie."""
        return self._generation.draw()

    def take(self, known: Next) -> FinishReason | None:
        """The next token is chosen. Returns: why the answer is complete with it. Raises: ValueError."""
        generation = self._generation
        text = generation.push(known) if generation.finish_reason is None else ""  # no token was asked for
        self._first = self._first or time.perf_counter()
        if text:
            with self._changed:
                self._pieces.append(Piece(text, len(self.ids)))
            self._notify()
        return generation.finish_reason

    def end(self, reason: EndReason | Exception) -> None:
        """The last that happens to it."""
        self._ended = time.perf_counter()
        with self._changed:
            if isinstance(reason, Exception):
                self.error = reason
            else:
                self.finish_reason = reason
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
            listeners = (*self._listeners, *(self._end_listeners if self._is_over else ()))
        for listener in listeners:
            with suppress(RuntimeError):  # its event loop is closed
                listener()
