"""What a scheduler's thread does: prompts in small steps, and between them a token for everybody."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from .scheduler_state import Running, SchedulerState
from .session import decode_together
from .slot_choice import choose_slot

if TYPE_CHECKING:
    from .draw import Next
    from .request import EndReason

LENT_S = 0.02  # between looks while requests wait and every slot is lent


class StepLoop:
    """Gives slots to the requests that wait and steps to those that run, until the state is closed."""

    def __init__(self, state: SchedulerState, stall_s: float) -> None:
        self._state, self._stall_s = state, stall_s

    def run(self) -> None:
        """Ends every request and closes every slot at the end. `state.failure` is what ended it, if it
        failed.
        """
        state = self._state
        try:
            while self._wait_for_work():
                self._end_early()
                self._admit()
                self._prompt_steps()
                self._decode()
        except BaseException as error:  # panics of Rust's libraries are none of Exception
            with state.changed:
                state.failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
        finally:
            self._end_all(state.failure or "abort")
            for session in state.idle:
                session.close()

    def _wait_for_work(self) -> bool:
        state = self._state
        with state.changed:
            state.changed.wait_for(lambda: state.waiting or state.running or state.is_closed)
            if not state.running and not state.idle:
                state.changed.wait(LENT_S)
            return not state.is_closed

    def _end_early(self) -> None:
        """Ends what was aborted or is out of time."""
        state, now = self._state, time.monotonic()
        for running in list(state.running):
            if reason := running.request.early_end(now):
                self._end(running, reason)
        with state.changed:
            ended = state.waiting.take_ended(now)
            for request, reason in ended:
                state.say_end(request, reason)
            if ended:
                state.changed.notify_all()

    def _admit(self) -> None:
        """Gives the next request a slot, unless a prompt is under way."""
        state = self._state
        if any(running.prompt for running in state.running):
            return
        with state.choosing:
            with state.changed:
                request = next(iter(state.waiting), None)
                if request is None or not state.idle:
                    return
            busy = [running.session for running in state.running]
            session = choose_slot(request.prompt_ids, state.idle, busy, state.cache)
            n_cached = len(session.ids)
            request.begin(session.slot, n_cached)
            prompt = session.prefill_steps(request.prompt_ids[n_cached:])
            with state.changed:
                state.waiting.remove(request)  # no longer the first, perhaps
                state.idle.remove(session)
                state.running.append(Running(request, session, prompt))
        state.counts.cached_tokens += n_cached

    def _prompt_steps(self) -> None:
        """Steps of the prompt under way: for stall_s if anybody waits for a decode, else one."""
        state = self._state
        running = next((running for running in state.running if running.prompt), None)
        if running is None or running.prompt is None:
            return
        until = time.monotonic() + (self._stall_s if len(state.running) > 1 else 0.0)
        while True:
            try:
                next(running.prompt)
            except StopIteration as end:
                running.prompt = None
                state.counts.prompt_tokens += len(running.request.prompt_ids)
                self._take(running, end.value)
                return
            if time.monotonic() >= until:
                return

    def _decode(self) -> None:
        """A token for everybody whose prompt is taken in."""
        together = [running for running in self._state.running if running.prompt is None]
        if not together:
            return
        sessions, requests = zip(*((each.session, each.request) for each in together), strict=True)
        tokens, draws = [each.ids[-1] for each in requests], [each.draw() for each in requests]
        found = decode_together(sessions, tokens, draws)
        self._state.counts.decode_steps += 1
        for running, known in zip(together, found, strict=True):
            self._take(running, known)

    def _take(self, running: Running, known: Next) -> None:
        try:
            reason = running.request.take(known)
        except Exception as error:  # what chooses tokens and makes text of them is this request's own
            self._end(running, error)
            return
        self._state.counts.predicted_tokens += bool(running.request.ids)  # none may be asked for
        if reason:
            self._end(running, reason)

    def _end(self, running: Running, reason: EndReason | Exception) -> None:
        state = self._state
        try:
            if running.prompt:
                running.prompt.close()
            if not isinstance(reason, Exception):
                state.kv = running.request.kv = dict(running.session.kv)
        finally:
            with state.changed:
                state.running.remove(running)
                state.idle.append(running.session)
                state.say_end(running.request, reason)
                state.changed.notify_all()

    def _end_all(self, reason: EndReason | Exception) -> None:
        state = self._state
        for running in list(state.running):
            with suppress(Exception):  # an engine that has failed may not forget a prompt either
                self._end(running, reason)
        with state.changed:
            state.is_draining = state.is_closed = True
            for request in state.waiting.take_all():
                state.say_end(request, reason)
            state.changed.notify_all()
