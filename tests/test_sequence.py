"""Sequences over small exact models: stops, limits, KV reuse, interruptions, timings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yakvrt.generation import StopText
from yakvrt.sampler import SamplingParams
from yakvrt.sequence import Sequence as Running
from yakvrt.stream_decoder import StreamDecoder

EOS = 256
VOCAB = 257
Logits = np.ndarray[Any, np.dtype[np.float32]]


class ByteTokenizer:
    """Ids are bytes; 256 ends the text."""

    eos_ids = frozenset({EOS})

    def stream(self, *, continues: bool) -> StreamDecoder:
        return StreamDecoder(lambda token: b"" if token == EOS else bytes([token]), strip_space=not continues)


class HistoryModel:
    """A session whose logits depend on every id it holds, so that wrong KV reuse changes the text."""

    kv: ClassVar = {"method": "history", "bytes": 0}

    def __init__(self, ctx_size: int = 64) -> None:
        self.ids: list[int] = []
        self.ctx_size = ctx_size
        self.calls: list[tuple[str, int]] = []
        self.n_closed = 0

    def logits(self) -> Logits:
        return np.random.default_rng(self.ids).normal(0, 3, VOCAB).astype(np.float32)

    def prefill(self, ids: Sequence[int], progress: Callable[[int, int], None] | None = None) -> Logits:
        self.calls.append(("prefill", len(ids)))
        for done, token in enumerate(ids, 1):
            self.ids.append(token)
            if progress:
                progress(done, len(ids))
        assert len(self.ids) <= self.ctx_size
        return self.logits()

    def next(self, token: int, draw: object) -> Logits:
        self.calls.append(("decode", 1))
        self.ids.append(token)
        assert len(self.ids) <= self.ctx_size
        return self.logits()

    def truncate(self, n: int) -> None:
        del self.ids[n:]

    def close(self) -> None:
        self.n_closed += 1


class Reciter(HistoryModel):
    """A session that says a given text after a prompt of one token, then ends it."""

    def __init__(self, text: str | bytes, ctx_size: int = 1000) -> None:
        super().__init__(ctx_size)
        self.script = [*(text.encode() if isinstance(text, str) else text), EOS]

    def logits(self) -> Logits:
        scores = np.zeros(VOCAB, np.float32)
        scores[self.script[min(len(self.ids) - 1, len(self.script) - 1)]] = 9
        return scores


def recite(text: str | bytes, **params: Any) -> Running:
    session = Reciter(text)
    return Running(session, ByteTokenizer(), [1], SamplingParams(temperature=0, **params))  # type: ignore[arg-type]


def running(session: HistoryModel, prompt: list[int], *, owns: bool = False, **params: Any) -> Running:
    params = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, **params}
    return Running(session, ByteTokenizer(), prompt, SamplingParams(**params), owns_session=owns)  # type: ignore[arg-type]


def test_text_comes_in_whole_characters_and_ends_at_eos() -> None:
    text = "Grüße, 世界 🙂!"
    sequence = recite(text)
    pieces = list(sequence)
    assert "".join(pieces) == sequence.text == text
    assert "世" in pieces
    assert sequence.finish_reason == "stop"
    assert sequence.ids == [*text.encode(), EOS]


def test_a_character_cut_by_the_limit_is_replaced() -> None:
    sequence = recite("aé", max_tokens=2)
    assert list(sequence) == ["a", "�"]
    assert sequence.finish_reason == "length"


def test_text_ends_before_a_stop_string() -> None:
    sequence = recite("one two STOP three", stop=("STOP", "never"))
    pieces = list(sequence)
    assert "".join(pieces) == "one two "
    assert sequence.finish_reason == "stop"
    assert not any("S" in piece for piece in pieces)
    assert len(sequence.ids) == len("one two STOP")


def test_the_beginning_of_a_stop_string_is_given_out_when_it_was_none() -> None:
    for limit in (-1, 6):
        sequence = recite("abc\nUse", stop=("\nUser:",), max_tokens=limit)
        assert "".join(sequence) == "abc\nUse"[: limit if limit > 0 else None]


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 4), min_size=30, max_size=30),
)
def test_stop_text_finds_the_first_stop_however_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    stop_text, out, rest = StopText(tuple(stops)), "", text
    for cut in cuts:
        out += stop_text.push(rest[:cut])
        rest = rest[cut:]
        if stop_text.found:
            break
    if not stop_text.found:
        out += stop_text.flush()
    # The stop whose last character comes first ends the text; one push may complete several.
    found = [text.find(stop) for stop in stops if stop in text]
    assert stop_text.found == bool(found)
    if not found:
        assert out == text
    else:
        assert text.startswith(out)
        assert any(text.startswith(stop, len(out)) for stop in stops)
        assert not any(stop in out for stop in stops)


def test_stop_ids_end_the_sequence() -> None:
    sequence = recite("hello", stop_ids={ord("l")})
    assert "".join(sequence) == "he"
    assert sequence.finish_reason == "stop"
    assert sequence.ids == list(b"hel")


def test_prompt_and_answer_never_exceed_the_context() -> None:
    session = HistoryModel(ctx_size=10)
    sequence = running(session, [5, 6, 7], max_tokens=-1)
    list(sequence)
    assert len(sequence.ids) == 7
    assert sequence.finish_reason == "length"


def test_max_tokens_zero_only_reads_the_prompt() -> None:
    session = HistoryModel()
    sequence = running(session, [5, 6, 7], max_tokens=0)
    assert list(sequence) == []
    assert session.calls == [("prefill", 3)]
    assert sequence.finish_reason == "length"
    assert sequence.timings["predicted_n"] == 0


def test_no_decode_is_spent_after_the_last_token() -> None:
    session = HistoryModel()
    list(running(session, [1, 2], max_tokens=4))
    assert session.calls == [("prefill", 2), *[("decode", 1)] * 3]


@pytest.mark.parametrize("prompt", [[], list(range(10)), list(range(11))])
def test_a_prompt_that_does_not_fit_is_refused_and_frees_the_slot(prompt: list[int]) -> None:
    session = HistoryModel(ctx_size=10)
    with pytest.raises(ValueError, match="empty" if not prompt else "raise --ctx-size"):
        running(session, prompt, owns=True)
    assert session.n_closed == 1
    assert session.calls == []


def test_the_shared_prefix_is_reused_and_changes_nothing() -> None:
    session = HistoryModel()
    first = running(session, [1, 2, 3])
    list(first)
    prompt = [1, 2, 3, *first.ids[:4], 9]
    for turn in (prompt, prompt, [1, 2], [7, 7]):
        again, alone = running(session, turn), running(HistoryModel(), turn)
        assert list(again) == list(alone)
        assert again.ids == alone.ids
        assert again.timings["cache_n"] + again.timings["prompt_n"] == len(turn)
    session = HistoryModel()
    list(running(session, prompt))
    repeated = running(session, prompt)
    list(repeated)
    assert repeated.timings["cache_n"] == len(prompt) - 1


def test_closing_keeps_the_text_and_frees_the_slot_once() -> None:
    session = Reciter("hello")
    sequence = running(session, [1], owns=True)
    assert next(sequence) + next(sequence) == "he"
    sequence.close()
    sequence.close()
    assert session.n_closed == 1
    assert sequence.text == "he"
    assert sequence.finish_reason is None
    assert list(sequence) == []
    assert sequence.kv == HistoryModel.kv
    never_started = running(session, [1], owns=True)
    never_started.close()
    assert session.n_closed == 2


def test_a_slot_that_is_not_owned_stays_open() -> None:
    session = Reciter("hello")
    with running(session, [1]) as sequence:
        next(sequence)
    assert session.n_closed == 0


def test_an_interruption_inside_a_step_keeps_the_text() -> None:
    class Interrupted(Reciter):
        def next(self, token: int, draw: object) -> Logits:
            if len(self.ids) == 3:
                raise KeyboardInterrupt
            return super().next(token, draw)

    session = Interrupted("hello")
    sequence = running(session, [1], owns=True)
    with pytest.raises(KeyboardInterrupt):
        list(sequence)
    assert sequence.text == "hel"
    assert session.n_closed == 1


def test_logprobs_are_kept_per_token() -> None:
    sequence = running(HistoryModel(), [1], logprobs=2, max_tokens=3)
    list(sequence)
    assert sequence.logprobs is not None
    assert [s.id for s in sequence.logprobs] == sequence.ids
    assert all(s.top[0] == (s.id, s.logprob) and len(s.top) == 2 for s in sequence.logprobs)
    assert running(HistoryModel(), [1]).logprobs is None


def test_timings_have_llama_cpps_names_and_agree_with_each_other() -> None:
    steps: list[tuple[int, int]] = []
    sequence = Running(
        HistoryModel(),
        ByteTokenizer(),  # type: ignore[arg-type]
        [1, 2, 3],
        SamplingParams(temperature=0, max_tokens=5, ignore_eos=True),
        progress=lambda done, total: steps.append((done, total)),
    )
    assert not any(sequence.timings.values())
    list(sequence)
    timings = sequence.timings
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert (timings["prompt_n"], timings["predicted_n"], timings["cache_n"]) == (3, 5, 0)
    assert timings["prompt_per_second"] == pytest.approx(3e3 / timings["prompt_ms"])
    assert timings["predicted_per_second"] == pytest.approx(4e3 / timings["predicted_ms"])
    assert timings["ttft_ms"] >= timings["prompt_ms"] > 0


def test_the_prompt_may_be_taken_in_before_the_first_step() -> None:
    at_once, apart = HistoryModel(), HistoryModel()
    expected, sequence = running(at_once, [1, 2, 3]), running(apart, [1, 2, 3])
    list(expected)
    sequence.prefill()
    sequence.prefill()
    assert apart.calls == [("prefill", 3)]
    assert sequence.timings["prompt_n"] == 3
    time.sleep(0.2)  # what lies between counts for nothing
    list(sequence)
    assert (sequence.ids, apart.calls) == (expected.ids, at_once.calls)
    assert sequence.timings["ttft_ms"] < 200


def test_a_fixed_seed_repeats_the_text() -> None:
    texts = [running(HistoryModel(), [3], temperature=2.0, seed=seed) for seed in (5, 5, 6)]
    first, second, other = ("".join(sequence) for sequence in texts)
    assert first == second != other
    assert texts[0].seed == 5
