"""Sessions: limits, turns between threads, use after close."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from golden_values import tiny_cases, tiny_dir

import yakvrt


@pytest.fixture(scope="module")
def engine() -> Iterator[yakvrt.Engine]:
    with yakvrt.load(
        str(tiny_dir("qwen3")),
        dtype="f32",
        cache_type="f32",
        ctx_size=64,
        n_slots=3,
        threads=2,
        ubatch_size=16,
    ) as engine:
        yield engine


def test_a_full_slot_refuses_and_stays_usable(engine: yakvrt.Engine) -> None:
    with engine.session() as session:
        session.prefill([5] * 63)
        session.decode(5)
        for feed in (lambda: session.decode(5), lambda: session.prefill([5])):
            with pytest.raises(ValueError, match="65 tokens do not fit, the slot holds 64"):
                feed()
        session.truncate(10)
        assert len(session.prefill([7])) == engine.config.vocab_size


def test_threads_on_one_session_never_pass_its_end(engine: yakvrt.Engine) -> None:
    with engine.session() as session:
        session.prefill([5] * 60)

        def feed() -> None:
            for _ in range(20):
                try:
                    session.decode(5)
                except ValueError:
                    return

        threads = [threading.Thread(target=feed) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(session.ids) == 64


def test_sessions_of_several_threads_get_their_own_logits(engine: yakvrt.Engine) -> None:
    prompts = [case.ids[:40] for case in tiny_cases("qwen3")[1:4]]
    expected = []
    for ids in prompts:
        with engine.session() as session:
            expected.append(session.prefill(ids))
    wrong: list[float] = []

    def check(i: int) -> None:
        with engine.session() as session:
            for _ in range(150):
                difference = np.abs(session.prefill(prompts[i]) - expected[i]).max()
                if difference > 1e-3:
                    wrong.append(float(difference))
                session.truncate(0)

    threads = [threading.Thread(target=check, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_generator_left_half_way_holds_nobody_up(engine: yakvrt.Engine) -> None:
    with engine.session() as first, engine.session() as second:
        chunks = first.all_logits([3] * 40)
        next(chunks)
        done = threading.Event()
        other = threading.Thread(target=lambda: (second.prefill([4] * 20), done.set()))
        other.start()
        assert done.wait(30)
        assert sum(len(chunk) for chunk in chunks) == 24


def test_after_close() -> None:
    engine = yakvrt.load(str(tiny_dir("qwen3")), ctx_size=64, threads=2)
    session = engine.session()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.prefill([1, 2, 3])
    session.close()
    session.close()
    with pytest.raises(ValueError, match="session is closed"):
        session.decode(1)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "empty"), ([1, "two"], "not a mixture"), ([1.5], "not a mixture"), ([600], "600 is outside")],
)
def test_wrong_prompts(engine: yakvrt.Engine, prompt: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        "".join(engine.generate(prompt, max_tokens=1))  # type: ignore[arg-type]
    engine.session().close()  # nothing leaked a slot


def test_a_prompt_may_be_any_iterable_of_ids(engine: yakvrt.Engine) -> None:
    assert engine.prompt_ids(iter(np.array([1, 2, 3]))) == [1, 2, 3]  # type: ignore[arg-type]
