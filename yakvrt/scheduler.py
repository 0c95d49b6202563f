"""Many requests over the KV slots of one engine: continuous batching, with prompts between decode steps."""

from __future__ import annotations

import itertools
import threading
import time
from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .generation import Generation
from .prefix_cache import PrefixCache
from .request import EndReason, Request
from .scheduler_state import Counts, OverloadedError, Running, SlotBusyError, SlotView
from .session import check_ids, decode_together
from .slot_choice import choose_slot

if TYPE_CHECKING:
    from .draw import Next
    from .engine import Engine, Message
    from .sampler import SamplingParams
    from .session import Session


LENT_S = 0.02  # between looks while requests wait and every slot is lent


class Scheduler:
    """A thread that answers requests, submitted from any thread, over all slots of an engine.

    One prompt at a time is taken in, and every `stall_ms` it waits while those that have begun to answer
    decode a token together: their streams stand still for at most that, one step of the prompt (a chunk of
    one layer) and one decode. Requests wait for a slot in the order of their priority, then of
    arrival. What a slot holds after its answer stays there until the slot is needed, then in a cache of
    cache_bytes; prompts that begin alike begin with it. close() ends the thread, not the engine.

    `kv` are the KV method's figures when the last answer ended; `failure` is what ended the scheduler, if
    it failed.

    Raises: RuntimeError when a session of the engine is open.
    """

    def __init__(
        self, engine: Engine, *, stall_ms: float = 50.0, max_waiting: int = 1024, cache_bytes: int = 0
    ) -> None:
        if not 0 <= stall_ms <= 60_000 or not 0 <= max_waiting <= 1_000_000:
            raise ValueError(f"stall_ms={stall_ms:g}, max_waiting={max_waiting} is out of range")
        self._engine, self._stall_s, self._max_waiting = engine, stall_ms / 1e3, max_waiting
        self.counts, self.cache = Counts(), PrefixCache(cache_bytes)
        self._idle: list[Session] = []  # longest idle first
        try:
            for _ in range(engine.n_slots):
                self._idle.append(engine.session())
        except BaseException:
            self._close_sessions()
            raise
        self._slots = tuple(self._idle)
        self.kv: Mapping[str, Any] = dict(self._slots[0].kv)
        self._waiting: list[tuple[int, int, Request]] = []  # in their order
        self._running: list[Running] = []
        self._arrivals = itertools.count()
        self._changed = threading.Condition()
        self._choosing = threading.Lock()  # who takes a slot out of the idle ones
        self._is_draining = self._is_closed = False
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="yakvrt-scheduler", daemon=True)
        self._thread.start()

    @property
    def n_running(self) -> int:
        """Requests that have a slot."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def submit(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        **overrides: Any,
    ) -> Request:
        """Asks for an answer; the first arguments are those of Engine.generate(). A lower priority number
        comes first; timeout_s ends it, wherever it is then.

        Raises: ValueError for a prompt that no slot can ever hold, ids outside the vocabulary, parameters out
            of range; TypeError for unknown ones; OverloadedError when max_waiting requests wait already;
            RuntimeError once draining or closed.
        """
        engine = self._engine
        params = engine.sampling_params(params, **overrides)
        ids = engine.prompt_ids(prompt, raw=raw, chat_template_kwargs=chat_template_kwargs)
        generation = Generation(engine.tokenizer, ids, params, engine.ctx_size)
        check_ids(ids, engine.config.vocab_size)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        request = Request(ids, generation, deadline)
        with self._changed:
            if self.failure:
                raise RuntimeError(f"the scheduler has failed: {self.failure}") from self.failure
            if self._is_draining:
                raise RuntimeError("the scheduler takes no more requests; it is shutting down")
            if len(self._waiting) >= self._max_waiting:
                raise OverloadedError(f"{self._max_waiting} requests are waiting already; try again later")
            insort(self._waiting, (priority, next(self._arrivals), request))
            self.counts.requests += 1
            self._changed.notify_all()
        return request

    def slots(self) -> list[SlotView]:
        """Every slot by its number."""
        with self._changed:
            busy = {running.session: running.request for running in self._running}
            return [SlotView(busy.get(session), len(session.ids)) for session in self._slots]

    @contextmanager
    def lend(self, number: int) -> Iterator[Session]:
        """An idle slot, which no request gets meanwhile.

        Raises: SlotBusyError when it is not idle; IndexError when there is none of that number.
        """
        with self._choosing, self._changed:
            if not 0 <= number < len(self._slots):
                raise IndexError(f"there is no slot {number}; they are 0 to {len(self._slots) - 1}")
            session = self._slots[number]
            if session not in self._idle or self._is_closed:
                raise SlotBusyError(f"slot {number} is in use; try again later")
            self._idle.remove(session)
        try:
            yield session
        finally:
            with self._changed:
                if self._is_closed:
                    session.close()
                else:
                    self._idle.append(session)
                    self._changed.notify_all()

    def drain(self, timeout: float | None = None) -> bool:
        """Takes no more requests and waits for those there are. Returns: whether all have ended in time."""
        with self._changed:
            self._is_draining = True
            return self._changed.wait_for(lambda: not (self._waiting or self._running), timeout)

    def close(self) -> None:
        """Aborts what is under way and ends the thread; further calls do nothing."""
        with self._changed:
            self._is_draining = self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What follows runs in the scheduler's thread.

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._end_early()
                self._admit()
                self._prompt_steps()
                self._decode()
        except BaseException as error:  # panics of Rust's libraries are none of Exception
            with self._changed:
                self.failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
        finally:
            self._end_all(self.failure or "abort")
            self._close_sessions()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._is_closed)
            if not self._running and not self._idle:
                self._changed.wait(LENT_S)
            return not self._is_closed

    def _end_early(self) -> None:
        """Ends what was aborted or is out of time."""
        now = time.monotonic()
        for running in list(self._running):
            if reason := running.request.early_end(now):
                self._end(running, reason)
        with self._changed:
            kept = []
            for entry in self._waiting:
                if reason := entry[2].early_end(now):
                    self._say_end(entry[2], reason)
                else:
                    kept.append(entry)
            if len(kept) < len(self._waiting):
                self._waiting = kept
                self._changed.notify_all()

    def _admit(self) -> None:
        """Gives the next request a slot, unless a prompt is under way."""
        if any(running.prompt for running in self._running):
            return
        with self._choosing:
            with self._changed:
                if not self._waiting or not self._idle:
                    return
                entry = self._waiting[0]
            request = entry[2]
            busy = [running.session for running in self._running]
            session = choose_slot(request.prompt_ids, self._idle, busy, self.cache)
            n_cached = len(session.ids)
            request.begin(n_cached)
            prompt = session.prefill_steps(request.prompt_ids[n_cached:])
            with self._changed:
                self._waiting.remove(entry)  # no longer the first, perhaps
                self._idle.remove(session)
                self._running.append(Running(request, session, prompt))
        self.counts.cached_tokens += n_cached

    def _prompt_steps(self) -> None:
        """Steps of the prompt under way: for stall_ms if anybody waits for a decode, else one."""
        running = next((running for running in self._running if running.prompt), None)
        if running is None or running.prompt is None:
            return
        until = time.monotonic() + (self._stall_s if len(self._running) > 1 else 0.0)
        while True:
            try:
                next(running.prompt)
            except StopIteration as end:
                running.prompt = None
                self.counts.prompt_tokens += len(running.request.prompt_ids)
                self._take(running, end.value)
                return
            if time.monotonic() >= until:
                return

    def _decode(self) -> None:
        """A token for everybody whose prompt is taken in."""
        together = [running for running in self._running if running.prompt is None]
        if not together:
            return
        sessions, requests = zip(*((each.session, each.request) for each in together), strict=True)
        tokens, draws = [each.ids[-1] for each in requests], [each.draw() for each in requests]
        found = decode_together(sessions, tokens, draws)
        self.counts.decode_steps += 1
        for running, known in zip(together, found, strict=True):
            self._take(running, known)

    def _take(self, running: Running, known: Next) -> None:
        try:
            reason = running.request.take(known)
        except Exception as error:  # what chooses tokens and makes text of them is this request's own
            self._end(running, error)
            return
        self.counts.predicted_tokens += bool(running.request.ids)  # none may be asked for
        if reason:
            self._end(running, reason)

    def _end(self, running: Running, reason: EndReason | Exception) -> None:
        try:
            if running.prompt:
                running.prompt.close()
            if not isinstance(reason, Exception):
                self.kv = running.request.kv = dict(running.session.kv)
        finally:
            with self._changed:
                self._running.remove(running)
                self._idle.append(running.session)
                self._say_end(running.request, reason)
                self._changed.notify_all()

    def _say_end(self, request: Request, reason: EndReason | Exception) -> None:
        name = reason if isinstance(reason, str) else "error"
        self.counts.ends[name] = self.counts.ends.get(name, 0) + 1
        request.end(reason)

    def _end_all(self, reason: EndReason | Exception) -> None:
        for running in list(self._running):
            with suppress(Exception):  # an engine that has failed may not forget a prompt either
                self._end(running, reason)
        with self._changed:
            self._is_draining = self._is_closed = True
            for _, _, request in self._waiting:
                self._say_end(request, reason)
            self._waiting.clear()
            self._changed.notify_all()

    def _close_sessions(self) -> None:
        for session in self._idle:
            session.close()
