"""The scheduler: answers are those of a request alone, whatever goes on beside it; limits, ends, failures."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from test_kvcache_contract import LITTLE, MODULES, engine, ids_of

import yakvrt
from yakvrt.draw import Next
from yakvrt.request import Request
from yakvrt.sampler import SamplingParams
from yakvrt.scheduler import Scheduler
from yakvrt.scheduler_state import OverloadedError, SlotBusyError
from yakvrt.session import Session, decode_together
from yakvrt.stream_decoder import StreamDecoder

FAMILY = "qwen3"


class Numbers:
    """Ids are numbers, and none ends a text: the tiny models have no tokenizer."""

    eos_ids = frozenset[int]()

    def stream(self, *, continues: bool) -> StreamDecoder:
        return StreamDecoder(lambda token: b"%d " % token, strip_space=not continues)


def greedy(n: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=n, ignore_eos=True)


def prompts(lengths: list[int]) -> list[list[int]]:
    """None begins like another."""
    ids = ids_of(FAMILY, 300)
    return [[i + 1, *ids[i : i + n - 1]] for i, n in enumerate(lengths)]


def alone(loaded: yakvrt.Engine, prompt: list[int], n: int) -> list[int]:
    with loaded.generate(prompt, greedy(n)) as answer:
        for _ in answer:
            pass
        return answer.ids


@pytest.fixture(scope="module")
def full() -> Iterator[yakvrt.Engine]:
    with engine(FAMILY, "full", {}, n_slots=3) as made:
        made.tokenizer = Numbers()  # type: ignore[assignment]
        yield made


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a prompt take 10 ms, decode steps 2 ms."""
    prefill_steps = Session.prefill_steps

    def prompt(self: Session, ids: list[int]) -> Generator[None, None, np.ndarray]:
        steps = prefill_steps(self, ids)
        try:
            while True:
                time.sleep(0.01)
                try:
                    next(steps)
                except StopIteration as end:
                    logits: np.ndarray = end.value
                    return logits
                yield
        finally:
            steps.close()

    def decode(*given: Any) -> Sequence[Next]:
        time.sleep(0.002)
        return decode_together(*given)

    monkeypatch.setattr(Session, "prefill_steps", prompt)
    monkeypatch.setattr("yakvrt.step_loop.decode_together", decode)


@pytest.mark.parametrize("name", MODULES)
def test_every_answer_is_that_of_its_request_alone(name: str) -> None:
    """Requests come while others are taken in or answered, and some are given up on the way."""
    draw = random.Random(7)
    asked = [(prompt, draw.randint(1, 24)) for prompt in prompts([1, 150, 63, 64, 200, 65, 17, 130])]
    with engine(FAMILY, name, LITTLE[name], n_slots=3) as loaded:
        loaded.tokenizer = Numbers()  # type: ignore[assignment]
        expected = [alone(loaded, prompt, n) for prompt, n in asked]
        with Scheduler(loaded, stall_ms=0) as scheduler:
            given_up = [scheduler.submit([99, *prompt], greedy(40)) for prompt, _ in asked[::3]]
            found = []
            for prompt, n in asked:
                found.append(scheduler.submit(prompt, greedy(n)))
                time.sleep(draw.random() * 0.02)
                if len(found) % 3 == 0:
                    given_up.pop().abort()
            texts = [request.result(60) for request in found]
            assert scheduler.drain(60)
        assert [request.ids for request in found] == expected
        assert [request.finish_reason for request in found] == ["length"] * len(asked)
        assert texts == ["".join(f"{token} " for token in ids) for ids in expected]
        for _ in range(3):  # every slot is free again
            loaded.session()


def test_streams_go_on_while_a_prompt_is_taken_in(full: yakvrt.Engine) -> None:
    """With stall_ms 0 a token comes after every step of the prompt: a chunk of 64 in one of the layers."""
    short, long = prompts([5, 300])
    with Scheduler(full, stall_ms=0) as scheduler:
        first = scheduler.submit(short, greedy(300))
        next(iter(first))
        before = len(first.ids)
        second = scheduler.submit(long, greedy(1))
        second.result(60)
        meanwhile = len(first.ids) - before
        first.abort()
    assert meanwhile >= 5 * full.config.n_layers
    assert first.finish_reason == "abort"


def test_a_conversation_goes_on_in_its_slot(full: yakvrt.Engine) -> None:
    (prompt,) = prompts([100])
    with Scheduler(full) as scheduler:
        first = scheduler.submit(prompt, greedy(8))
        first.result(60)
        turn = [*prompt, *first.ids[:-1], 5, 6, 7]
        second = scheduler.submit(turn, greedy(8))
        second.result(60)
        assert (first.timings["cache_n"], second.timings["cache_n"]) == (0, 107)
        assert scheduler.counts.cached_tokens == 107
        # The next ones leave that slot alone, but begin with a copy of what it holds.
        others = [scheduler.submit([*prompt[:90], i, i, i], greedy(4)) for i in (50, 60)]
        assert [(other.result(60), other.timings["cache_n"])[1] for other in others] == [90, 90]
        again = scheduler.submit([*turn, *second.ids[:-1], 9], greedy(2))
        again.result(60)
        assert again.timings["cache_n"] == 117
    assert second.ids == alone(full, turn, 8)
    assert others[1].ids == alone(full, [*prompt[:90], 60, 60, 60], 4)


def test_a_slot_under_way_is_copied_from(full: yakvrt.Engine) -> None:
    (prompt,) = prompts([100])
    with Scheduler(full) as scheduler:
        first = scheduler.submit(prompt, greedy(200))
        next(iter(first))
        second = scheduler.submit(prompt, greedy(5))
        second.result(60)
        assert second.timings["cache_n"] == 99
        assert first.finish_reason is None
        assert first.ids[:5] == second.ids


def test_the_first_in_line_is_the_most_urgent_one(full: yakvrt.Engine) -> None:
    order: list[str] = []
    with Scheduler(full, stall_ms=0) as scheduler:
        holders = [scheduler.submit(prompt, greedy(60)) for prompt in prompts([9, 9, 9])]
        late = scheduler.submit([7] * 9, greedy(1), priority=1)
        normal = scheduler.submit([8] * 9, greedy(1))
        urgent = scheduler.submit([9] * 9, greedy(1), priority=-1)

        def wait(name: str, request: Request) -> None:
            request.result(60)
            order.append(name)

        assert scheduler.n_waiting >= 3
        threads = [
            threading.Thread(target=wait, args=each)
            for each in (("late", late), ("normal", normal), ("urgent", urgent))
        ]
        for thread in threads:
            thread.start()
        holders[0].result(60)
        for thread in threads:
            thread.join()
    waited = [request.timings["waiting_ms"] for request in (urgent, normal, late)]
    assert waited == sorted(waited)


@pytest.mark.parametrize("stage", ["waiting", "prompt", "answer"])
@pytest.mark.parametrize("how", ["abort", "deadline"])
def test_an_early_end(full: yakvrt.Engine, slow: None, stage: str, how: str) -> None:
    with Scheduler(full, stall_ms=0) as scheduler:
        holders = [] if stage != "waiting" else [scheduler.submit([i] * 9, greedy(350)) for i in (3, 4, 5)]
        timeout_s = 0.03 if how == "deadline" else None
        length = 300 if stage == "prompt" else 9
        request = scheduler.submit([2] * length, greedy(380 - length), timeout_s=timeout_s)
        if stage == "answer" and how == "abort":
            next(iter(request))
        if how == "abort":
            request.abort()
        text = request.result(60)
        assert request.finish_reason == how
        assert text == request.text
        for holder in holders:
            holder.abort()
        assert scheduler.drain(60)
        assert scheduler.counts.ends == {how: 1, **({"abort": 3 + (how == "abort")} if holders else {})}


def test_what_can_never_be_answered_is_refused_at_once(full: yakvrt.Engine) -> None:
    with Scheduler(full, max_waiting=0) as scheduler:
        for ids, words in (
            ([], "empty"),
            ([1] * 384, "the context holds 384"),
            ([1, 10**6], "outside the vocabulary"),
        ):
            with pytest.raises(ValueError, match=words):
                scheduler.submit(ids)
        with pytest.raises(OverloadedError, match="0 requests are waiting already"):
            scheduler.submit([1])
        with pytest.raises(RuntimeError, match="in use"):
            Scheduler(full)
    with pytest.raises(RuntimeError, match="shutting down"):
        scheduler.submit([1])
    full.session().close()


def test_no_token_may_be_asked_for(full: yakvrt.Engine) -> None:
    with Scheduler(full) as scheduler:
        request = scheduler.submit([1, 2, 3], greedy(0))
        assert (request.result(60), request.ids, request.finish_reason) == ("", [], "length")
        assert request.timings["prompt_n"] == 3
        assert scheduler.counts.predicted_tokens == 0


def test_a_request_that_rules_everything_out_fails_alone(full: yakvrt.Engine) -> None:
    nothing = {i: float("-inf") for i in range(full.config.vocab_size)}
    with Scheduler(full) as scheduler:
        wrong = scheduler.submit([1, 2], SamplingParams(temperature=0, logit_bias=nothing))
        right = scheduler.submit([1, 3], greedy(3))
        with pytest.raises(ValueError, match="ruled out"):
            wrong.result(60)
        with pytest.raises(ValueError, match="ruled out"):
            list(wrong)
        right.result(60)
        assert len(right.ids) == 3


def test_a_failing_engine_fails_every_request() -> None:
    with engine(FAMILY, "full", {}, n_slots=2) as loaded:
        loaded.tokenizer = Numbers()  # type: ignore[assignment]
        scheduler = Scheduler(loaded)
        requests = [scheduler.submit(prompt, greedy(370)) for prompt in prompts([9, 9, 9])]
        next(iter(requests[0]))
        loaded.close()
        for request in requests:
            with pytest.raises(RuntimeError):
                request.result(60)
        with pytest.raises(RuntimeError, match="has failed"):
            scheduler.submit([1])


def test_a_failing_engine_that_cannot_forget_fails_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """One answers, the prompt of one is under way, one waits, and a slot is lent."""
    with engine(FAMILY, "full", {}, n_slots=3) as loaded:
        loaded.tokenizer = Numbers()  # type: ignore[assignment]
        scheduler = Scheduler(loaded, stall_ms=0)

        def fail(*_: object) -> None:
            raise RuntimeError("the device is gone")

        def decode(*given: Any) -> Sequence[Next]:
            if any(running.prompt for running in scheduler._state.running) and scheduler.n_waiting:
                monkeypatch.setattr(Session, "truncate", fail)
                fail()
            return decode_together(*given)

        monkeypatch.setattr("yakvrt.step_loop.decode_together", decode)
        with scheduler.lend(2) as lent:
            requests = [scheduler.submit(prompt, greedy(300)) for prompt in prompts([9, 300, 10])]
            for request in requests:
                with pytest.raises(RuntimeError, match="gone"):
                    request.result(60)
            scheduler._thread.join(60)
        with pytest.raises(ValueError, match="closed"):
            _ = lent.slot
        with pytest.raises(SlotBusyError), scheduler.lend(2):
            pass


def test_a_request_whose_tokens_cannot_be_told_fails_alone(
    full: yakvrt.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def piece(token: int) -> bytes:
        raise KeyError(token)

    with Scheduler(full) as scheduler:
        with monkeypatch.context() as patch:
            patch.setattr(
                Numbers, "stream", lambda self, *, continues: StreamDecoder(piece, strip_space=False)
            )
            wrong = scheduler.submit([1, 2], greedy(3))
        right = scheduler.submit([1, 3], greedy(3))
        with pytest.raises(KeyError):
            wrong.result(60)
        right.result(60)


def test_a_panic_is_a_failure(full: yakvrt.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no Exception must not leave a scheduler that looks well."""

    class Panic(BaseException):
        pass

    def panic(*_: object) -> None:
        raise Panic("in Rust")

    monkeypatch.setattr("yakvrt.step_loop.decode_together", panic)
    with Scheduler(full) as scheduler:
        request = scheduler.submit([1, 2], greedy(3))
        with pytest.raises(RuntimeError, match="in Rust"):
            request.result(60)
        with pytest.raises(RuntimeError, match="has failed"):
            scheduler.submit([1])


def test_asyncio_and_several_readers(full: yakvrt.Engine) -> None:
    (prompt,) = prompts([20])

    async def read(scheduler: Scheduler) -> list[str]:
        request = scheduler.submit(prompt, greedy(30))

        async def gather() -> str:
            return "".join([piece async for piece in request])

        texts = await asyncio.gather(gather(), gather())
        return [*texts, "".join(request), request.text]

    with Scheduler(full) as scheduler:
        texts = asyncio.run(read(scheduler))

        async def wait() -> None:
            request = scheduler.submit(prompt, greedy(30))
            await asyncio.gather(request.wait(), request.wait())
            await request.wait()
            assert request.text == texts[0]

        asyncio.run(wait())
        assert len(set(texts)) == 1
        left = scheduler.submit(prompt, greedy(30))

        async def leave() -> None:
            async for _ in left:
                break

        asyncio.run(leave())
        assert left.result(60) == texts[0]
        assert [piece.n_ids for piece in left.pieces()] == sorted({piece.n_ids for piece in left.pieces()})


def test_closing_ends_what_is_under_way(full: yakvrt.Engine) -> None:
    scheduler = Scheduler(full)
    requests = [scheduler.submit(prompt, greedy(370)) for prompt in prompts([9] * 5)]
    next(iter(requests[0]))
    assert not scheduler.drain(0.01)
    scheduler.close()
    scheduler.close()
    assert {request.finish_reason for request in requests} == {"abort"}
    assert not scheduler._thread.is_alive()


def test_an_idle_slot_can_be_borrowed(full: yakvrt.Engine) -> None:
    """No request gets it, also when it is the only one left."""
    with Scheduler(full) as scheduler:
        holders = [scheduler.submit(prompt, greedy(300)) for prompt in prompts([9, 9])]
        for holder in holders:
            next(iter(holder))
        views = scheduler.slots()
        (free,) = [number for number, view in enumerate(views) if view.request is None]
        assert {view.request for view in views} == {*holders, None}
        with scheduler.lend(free) as session:
            session.prefill([7, 8, 9])
            waiting = scheduler.submit([7, 8, 9, 10], greedy(3))
            for number in range(3):
                with pytest.raises(SlotBusyError, match=f"slot {number} is in use"), scheduler.lend(number):
                    pass
            for holder in holders:
                assert holder.finish_reason is None
            assert waiting.timings["prompt_n"] == 0
        with pytest.raises(IndexError, match="0 to 2"), scheduler.lend(3):
            pass
        waiting.result(60)
        assert waiting.timings["cache_n"] == 3
        assert waiting.kv["n_tokens"] == 6
        assert scheduler.kv == waiting.kv
        for holder in holders:
            holder.abort()
        assert scheduler.drain(60)
        with scheduler.lend(0) as borrowed:
            scheduler.close()
    with pytest.raises(ValueError, match="closed"):
        _ = borrowed.slot
    full.session().close()


@pytest.mark.parametrize("name", MODULES)
def test_what_a_slot_had_to_forget_is_found_in_the_cache(name: str) -> None:
    """The same bits as if the conversation had stayed in its slot."""
    first, *others = prompts([200, 90, 90, 90])
    found = []
    for cache_bytes in (0, 1 << 30):
        with engine(FAMILY, name, LITTLE[name], n_slots=1 if cache_bytes else 2) as loaded:
            loaded.tokenizer = Numbers()  # type: ignore[assignment]
            with Scheduler(loaded, cache_bytes=cache_bytes) as scheduler:
                begun = scheduler.submit(first, greedy(8))
                begun.result(60)
                for other in others if cache_bytes else ():
                    scheduler.submit(other, greedy(4)).result(60)
                turn = [*first, *begun.ids, 5, 6, 7]
                answer = scheduler.submit(turn, greedy(12))
                answer.result(60)
                assert answer.timings["cache_n"] == 207
                found.append(answer.ids)
    assert found[0] == found[1]
