"""Many requests over the KV slots of one engine: continuous batching, with prompts between decode steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .generation import Generation
from .prefix_cache import PrefixCache
from .request import Request
from .scheduler_state import Counts, SchedulerState, SlotBusyError, SlotView
from .session import check_ids
from .step_loop import StepLoop
from .waiting_line import WaitingLine

if TYPE_CHECKING:
    from .engine import Engine, Message
    from .sampler import SamplingParams
    from .session import Session


class Scheduler:
    """A thread that answers requests, submitted from any thread, over all slots of an engine.

    One prompt at a time is taken in, and every `stall_ms` it waits while those that have begun to answer
    decode a token together: their streams stand still for at most that, one step of the prompt (a chunk of
    one layer) and one decode; before its first step, for the copy of what is known of it. Requests wait for
    a slot in the order of their priority, then of arrival. What a slot holds after its answer stays there
    until the slot is needed, then in a cache of cache_bytes; prompts that begin alike begin with it. close()
    ends the thread, not the engine.

    Raises: RuntimeError when a session of the engine is open.
    """

    def __init__(
        self, engine: Engine, *, stall_ms: float = 50.0, max_waiting: int = 1024, cache_bytes: int = 0
    ) -> None:
        if not 0 <= stall_ms <= 60_000 or not 0 <= max_waiting <= 1_000_000:
            raise ValueError(f"stall_ms={stall_ms:g}, max_waiting={max_waiting} is out of range")
        self._engine = engine
        with ExitStack() as opened:
            slots = [opened.enter_context(engine.session()) for _ in range(engine.n_slots)]
            self._state = SchedulerState(
                slots=tuple(slots),
                waiting=WaitingLine(max_waiting),
                cache=PrefixCache(cache_bytes),
                kv=dict(slots[0].kv),
                idle=slots,
                trace=engine.runner.trace,
            )
            loop = StepLoop(self._state, stall_ms / 1e3)
            self._thread = threading.Thread(target=loop.run, name="yakvrt-scheduler", daemon=True)
            self._thread.start()
            opened.pop_all()  # the loop closes them

    @property
    def n_running(self) -> int:
        """Requests that have a slot."""
        return len(self._state.running)

    @property
    def n_waiting(self) -> int:
        return len(self._state.waiting)

    @property
    def counts(self) -> Counts:
        return self._state.counts

    @property
    def cache(self) -> PrefixCache:
        return self._state.cache

    @property
    def kv(self) -> Mapping[str, Any]:
        """The KV method's figures when the last answer ended."""
        return self._state.kv

    @property
    def failure(self) -> Exception | None:
        """What ended the scheduler, if it failed."""
        return self._state.failure

    def submit(
        self,
        prompt: str | Sequence[int] | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        name: str = "",
        **overrides: Any,
    ) -> Request:
        """Asks for an answer; the first arguments are those of Engine.generate(). A lower priority number
        comes first; timeout_s ends it, wherever it is then; by its name traces know it.

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
        request = Request(ids, generation, deadline, name)
        state = self._state
        with state.changed:
            if state.failure:
                raise RuntimeError(f"the scheduler has failed: {state.failure}") from state.failure
            if state.is_draining:
                raise RuntimeError("the scheduler takes no more requests; it is shutting down")
            state.waiting.add(request, priority)
            state.counts.requests += 1
            state.changed.notify_all()
        return request

    def slots(self) -> list[SlotView]:
        """Every slot by its number."""
        state = self._state
        with state.changed:
            busy = {running.session: running.request for running in state.running}
            return [SlotView(busy.get(session), len(session.ids)) for session in state.slots]

    @contextmanager
    def lend(self, number: int) -> Iterator[Session]:
        """An idle slot, which no request gets meanwhile.

        Raises: SlotBusyError when it is not idle; IndexError when there is none of that number.
        """
        state = self._state
        with state.choosing, state.changed:
            if not 0 <= number < len(state.slots):
                raise IndexError(f"there is no slot {number}; they are 0 to {len(state.slots) - 1}")
            session = state.slots[number]
            if session not in state.idle or state.is_closed:
                raise SlotBusyError(f"slot {number} is in use; try again later")
            state.idle.remove(session)
        try:
            yield session
        finally:
            with state.changed:
                if state.is_closed:
                    session.close()
                else:
                    state.idle.append(session)
                    state.changed.notify_all()

    def drain(self, timeout: float | None = None) -> bool:
        """Takes no more requests and waits for those there are. Returns: whether all have ended in time."""
        state = self._state
        with state.changed:
            state.is_draining = True
            return state.changed.wait_for(lambda: not (state.waiting or state.running), timeout)

    def close(self) -> None:
        """Aborts what is under way and ends the thread; further calls do nothing."""
        state = self._state
        with state.changed:
            state.is_draining = state.is_closed = True
            state.changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
