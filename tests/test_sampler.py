"""The sampler against llama.cpp's own chain, plain numpy truth and hostile logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yakvrt.draw import Drawn
from yakvrt.sampler import Sampled, Sampler, SamplingParams, largest_first

CASES = json.loads((Path(__file__).parent / "data" / "sampler_llamacpp.json").read_text())["cases"]
RAW = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def random_logits(n: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 3, n).astype(np.float32)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_distribution_is_llama_cpps(case: dict[str, Any]) -> None:
    settings_ = dict(case["params"])
    settings_["logit_bias"] = {int(k): v for k, v in settings_.get("logit_bias", {}).items()}
    sampler = Sampler(SamplingParams(**settings_))
    ids, probs = sampler.distribution(np.array(case["logits"], np.float32), case["history"])
    expected = dict(zip(case["ids"], case["probs"], strict=True))
    found = dict(zip(ids.tolist(), probs.tolist(), strict=True))
    assert found.keys() == expected.keys()
    assert all(abs(found[i] - expected[i]) < 1e-5 for i in expected)


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([1, 2, 63, 64, 65, 4095, 4097, 50_000]),
    k=st.integers(1, 300),
    levels=st.sampled_from([2, 50, 10**6]),
    seed=st.integers(0, 1000),
)
def test_largest_first_is_a_stable_sort(n: int, k: int, levels: int, seed: int) -> None:
    logits = np.random.default_rng(seed).integers(0, levels, n).astype(np.float32)
    k = min(k, n)
    assert largest_first(logits, k).tolist() == np.argsort(-logits, kind="stable")[:k].tolist()


def test_nucleus_over_the_whole_vocabulary_equals_a_full_sort() -> None:
    for scale in (0.001, 0.3, 3.0):
        logits = random_logits(20_000) * np.float32(scale)
        for top_p in (0.1, 0.9, 0.999):
            params = SamplingParams(temperature=1.0, top_k=0, top_p=top_p, min_p=0.0)
            ids, probs = Sampler(params).distribution(logits, [])
            order = np.argsort(-logits, kind="stable")
            weights = np.exp(logits[order].astype(np.float64))
            keep = int((np.cumsum(weights / weights.sum()) < top_p).sum()) + 1
            assert abs(len(ids) - keep) <= 1  # a cumulative sum on the edge may round either way
            assert ids.tolist() == order[: len(ids)].tolist()
            assert probs.sum() == pytest.approx(1)


def test_greedy_takes_the_first_of_equal_logits_and_heeds_penalties() -> None:
    logits = np.array([1, 5, 5, 4], np.float32)
    assert Sampler(SamplingParams(temperature=0)).sample(logits, []).id == 1
    penalised = SamplingParams(temperature=0, repeat_penalty=2.0)
    assert Sampler(penalised).sample(logits, [1, 2]).id == 3
    assert logits.tolist() == [1, 5, 5, 4], "the caller's logits were changed"


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(SamplingParams(**RAW, seed=3))
    counts = np.bincount([sampler.sample(logits, []).id for _ in range(6000)], minlength=3)
    assert np.abs(counts / 6000 - [0.5, 0.3, 0.2]).max() < 0.03


def test_a_seed_repeats_the_draws_and_a_random_one_is_reported() -> None:
    logits = random_logits(500)

    def draws(seed: int | None) -> tuple[int, list[int]]:
        sampler = Sampler(SamplingParams(**RAW, seed=seed))
        return sampler.seed, [sampler.sample(logits, []).id for _ in range(20)]

    assert draws(42) == draws(42)
    assert draws(42) != draws(43)
    for seed in (None, -1):
        used, ids = draws(seed)
        assert used >= 0
        assert draws(used) == (used, ids)


def test_ignore_eos_never_draws_an_end() -> None:
    logits = np.array([0, 9, 0, 9], np.float32)
    assert Sampler(SamplingParams(temperature=0, ignore_eos=True), {1, 3}).sample(logits, []).id == 0
    ids, _ = Sampler(SamplingParams(**RAW, ignore_eos=True), {1, 3}).distribution(logits, [])
    weights = dict(zip(ids.tolist(), _.tolist(), strict=True))
    assert weights[1] == weights[3] == 0


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = random_logits(5000)
    params = SamplingParams(temperature=0.2, repeat_penalty=1.7, logit_bias={7: 100.0}, logprobs=3)
    sampled = Sampler(params).sample(logits, [1, 2, 3])
    wide = logits.astype(np.float64)
    truth = wide - np.log(np.exp(wide - wide.max()).sum()) - wide.max()
    assert sampled.id == 7
    assert sampled.logprob == pytest.approx(truth[7], abs=1e-5)
    best = np.argsort(-truth)[:3]
    assert [i for i, _ in sampled.top] == best.tolist()
    assert [p for _, p in sampled.top] == pytest.approx(truth[best].tolist(), abs=1e-5)
    assert Sampler(SamplingParams(logprobs=0)).sample(logits, []).top == ()
    assert Sampler(SamplingParams()).sample(logits, []).logprob is None


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(**RAW)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("n", [10, 50_000])
def test_damaged_logits_are_named(params: SamplingParams, bad: float, n: int) -> None:
    logits = random_logits(n)
    logits[n // 2] = bad
    with pytest.raises(ValueError, match="NaN" if math.isnan(bad) else "infinite"):
        Sampler(params).sample(logits, [])


def test_ruling_out_everything_is_named() -> None:
    params = SamplingParams(logit_bias={0: -math.inf, 1: -math.inf})
    with pytest.raises(ValueError, match="ruled out"):
        Sampler(params).sample(np.zeros(2, np.float32), [])
    with pytest.raises(ValueError, match="token 5"):
        Sampler(SamplingParams(logit_bias={5: 1.0})).sample(np.zeros(5, np.float32), [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", 1.5),
        ("top_p", 1.01),
        ("min_p", -1),
        ("repeat_penalty", 0),
        ("repeat_last_n", -2),
        ("presence_penalty", math.inf),
        ("frequency_penalty", math.nan),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.nan}),
        ("seed", -2),
        ("seed", 2**64 + 5000),
        ("max_tokens", -2),
        ("stop", ("",)),
        ("stop_ids", [-5]),
        ("logprobs", 1001),
        ("logprobs", -1),
    ],
)
def test_parameters_out_of_range_are_refused_in_one_sentence(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name.split("_")[0]) as refusal:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def test_lists_and_single_strings_are_taken_as_stops() -> None:
    assert SamplingParams(stop="END").stop == ("END",)  # type: ignore[arg-type]
    assert SamplingParams(stop=["a", "b"], stop_ids=[3]).stop_ids == {3}  # type: ignore[arg-type]


def test_generation_config_wins_over_the_defaults() -> None:
    config = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05, "top_k": None}
    params = SamplingParams.from_generation_config(config)
    assert (params.temperature, params.top_p, params.repeat_penalty) == (0.6, 0.9, 1.05)
    assert (params.top_k, params.min_p) == (40, 0.05)
    with pytest.raises(ValueError, match=r"generation_config\.json: temperature"):
        SamplingParams.from_generation_config({"temperature": "hot"})


@pytest.mark.parametrize(
    "more", [{"logprobs": 0}, {"repeat_penalty": 1.1}, {"logit_bias": {3: 1.0}}, {"top_k": 0}, {"top_k": 65}]
)
def test_what_takes_logits_is_not_drawn_where_they_lie(more: dict[str, Any]) -> None:
    assert Sampler(SamplingParams(seed=3)).draw()
    assert not Sampler(SamplingParams(seed=3, **more)).draw()
    assert not Sampler(SamplingParams(seed=3, ignore_eos=True), eos_ids=[2]).draw()


def test_asking_how_to_draw_uses_no_number_up() -> None:
    """Who is asked and draws nothing leaves the answer as it is; what was drawn uses one up."""
    logits = np.random.default_rng(4).standard_normal(300).astype(np.float32)
    asked, other = (Sampler(SamplingParams(seed=9)) for _ in range(2))
    assert asked.draw() == asked.draw()
    assert [asked.sample(logits, []).id for _ in range(9)] == [other.sample(logits, []).id for _ in range(9)]
    first = asked.draw()
    assert asked.take(Drawn(7, 1.5)) == Sampled(7, None, ())
    assert asked.draw() != first
    for peak, told in ((math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "ruled out")):
        with pytest.raises(ValueError, match=told):
            asked.take(Drawn(7, peak))
