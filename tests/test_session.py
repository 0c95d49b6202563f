"""Sessions: limits, turns between threads, use after close."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_values import tiny_cases, tiny_dir

import yakvrt
from yakvrt import session_file
from yakvrt.saved_session import SavedSession


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


@pytest.mark.parametrize("what", ["save", "restore"])
def test_a_session_at_its_file_holds_itself_still_and_nobody_else(
    engine: yakvrt.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """However long the disk takes: half way, another session decodes and the one at hand waits."""
    with engine.session() as session, engine.session() as other, engine.session() as kept:
        session.prefill([5] * 20)
        other.prefill([6] * 20)
        kept.copy_from(session)
        session.save(tmp_path / "kept")
        at_disk, disk = threading.Event(), threading.Event()
        runs, read = session_file._runs, SavedSession._read

        def slow(work: Callable[..., Any]) -> Callable[..., Any]:
            def wait_and_work(*args: Any) -> Any:
                at_disk.set()
                assert disk.wait(30)
                return work(*args)

            return wait_and_work

        monkeypatch.setattr(session_file, "_runs", slow(runs))
        monkeypatch.setattr(SavedSession, "_read", slow(read))
        name = "new" if what == "save" else "kept"
        filing = threading.Thread(target=getattr(session, what), args=(tmp_path / name,))
        filing.start()
        assert at_disk.wait(30)
        using = threading.Thread(target=session.decode, args=(5,))
        using.start()
        other.decode(6)
        assert using.is_alive()
        assert not (tmp_path / "new").exists()
        disk.set()
        filing.join(30)
        using.join(30)
        assert len(session.ids) == 21
        monkeypatch.undo()
        session.restore(tmp_path / name)
        np.testing.assert_array_equal(session.decode(5), kept.decode(5))


def test_the_bytes_of_a_file_are_known_before(engine: yakvrt.Engine, tmp_path: Path) -> None:
    with engine.session() as session:
        for _ in range(2):
            session.save(tmp_path / "x")
            assert session.file_bytes() == (tmp_path / "x").stat().st_size
            session.prefill([5] * 30)


def test_nothing_is_taken_from_a_session_in_the_middle_of_a_prompt(
    engine: yakvrt.Engine, tmp_path: Path
) -> None:
    """Whose layers hold different numbers of tokens."""
    with engine.session() as session, engine.session() as other:
        session.prefill([5, 6, 7])
        steps = session.prefill_steps([8] * 40)
        next(steps)
        for take in (lambda: other.copy_from(session), lambda: session.save(tmp_path / "saved")):
            with pytest.raises(ValueError, match="a prompt of this session is under way"):
                take()
        assert not list(tmp_path.iterdir())
        steps.close()
        other.copy_from(session)
        assert list(other.ids) == [5, 6, 7]
