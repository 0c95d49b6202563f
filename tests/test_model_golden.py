"""The whole model against transformers' golden values: tiny models of all families, and the real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from golden_values import (
    QWEN25_CODER_FLOAT32,
    SMOLLM2_FLOAT32,
    TINY_FAMILIES,
    GoldenPrompt,
    golden,
    text_excerpt,
    tiny_cases,
    tiny_dir,
)
from tiny_gguf import write_tiny_gguf

import yakvrt
from yakvrt.perplexity import mean_nll
from yakvrt.session import decode_together

MARGIN = 1e-3  # a greedy choice closer than this may differ


def logits_of(engine: yakvrt.Engine, ids: list[int]) -> np.ndarray:
    with engine.session() as session:
        return np.concatenate([chunk.copy() for chunk in session.all_logits(ids)])


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["safetensors", "gguf"])
def exact_tiny(
    request: pytest.FixtureRequest, family: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[yakvrt.Engine]:
    """A tiny model on the float32 path, from either kind of file; prompts take several short chunks."""
    path = tiny_dir(family)
    if request.param == "gguf":
        path = write_tiny_gguf(family, tmp_path_factory.mktemp("tiny") / "model.gguf")
    with yakvrt.load(
        str(path), dtype="f32", cache_type="f32", ctx_size=1024, ubatch_size=100, threads=2
    ) as engine:
        yield engine


def test_tiny_prefill(exact_tiny: yakvrt.Engine, family: str) -> None:
    for case in tiny_cases(family):
        logits = logits_of(exact_tiny, case.ids)
        np.testing.assert_allclose(logits[-len(case.logits) :], case.logits, rtol=0, atol=1e-3)


def test_tiny_greedy_decode(exact_tiny: yakvrt.Engine, family: str) -> None:
    for case in tiny_cases(family):
        with exact_tiny.session() as session:
            logits, ids = session.prefill(case.ids), []
            for expected in case.greedy_ids:
                ids.append(int(logits.argmax()))
                if ids[-1] != expected:
                    assert logits[ids[-1]] - logits[expected] < MARGIN
                    break
                logits = session.decode(ids[-1])


def test_decode_equals_prefill(exact_tiny: yakvrt.Engine, family: str) -> None:
    ids = tiny_cases(family)[2].ids
    prefilled = logits_of(exact_tiny, ids)
    with exact_tiny.session() as session:
        decoded = np.stack([session.decode(token) for token in ids])
    np.testing.assert_allclose(decoded, prefilled, rtol=0, atol=1e-3)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_change_only_rounding(family: str, n_threads: int) -> None:
    ids = tiny_cases(family)[2].ids
    results = []
    for threads in (2, n_threads):
        with yakvrt.load(
            str(tiny_dir(family)), dtype="f32", cache_type="f32", ctx_size=256, threads=threads
        ) as engine:
            results.append(logits_of(engine, ids))
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
def test_decode_is_the_same_for_every_number_of_threads(family: str, dtype: str) -> None:
    """To the last bit: no sum depends on how the work is shared."""
    ids = (tiny_cases(family)[2].ids * 3)[:150]
    results = []
    for threads in (1, 2, 3):
        with (
            yakvrt.load(str(tiny_dir(family)), dtype=dtype, ctx_size=256, threads=threads) as engine,
            engine.session() as session,
        ):
            session.prefill(ids[:40])
            results.append(np.stack([session.decode(token) for token in ids[40:]]))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_batched_decode_equals_single(family: str) -> None:
    """Slots of different lengths decoded together give what each gives alone."""
    cases = [case.ids[:40] for case in tiny_cases(family)[:3]]
    next_ids = [5, 6, 7]
    with yakvrt.load(
        str(tiny_dir(family)), dtype="f32", cache_type="f32", ctx_size=128, n_slots=3, threads=2
    ) as engine:
        alone = []
        for ids, token in zip(cases, next_ids, strict=True):
            with engine.session() as session:
                session.prefill(ids)
                alone.append(session.decode(token))
        sessions = [engine.session() for _ in cases]
        for session, ids in zip(sessions, cases, strict=True):
            session.prefill(ids)
        slots, lengths = [s.slot for s in sessions], [len(ids) for ids in cases]
        together = engine.runner.decode(slots, lengths, next_ids)
        np.testing.assert_allclose(together, np.stack(alone), rtol=0, atol=1e-3)
        with pytest.raises(RuntimeError, match="all 3 slots"):
            engine.session()


@pytest.fixture(scope="module")
def exact_smollm2(smollm2_path: Path) -> Iterator[yakvrt.Engine]:
    with yakvrt.load(str(smollm2_path), dtype="f32", cache_type="f32", ctx_size=4096) as engine:
        yield engine


def check_prompts(engine: yakvrt.Engine, prompts: Sequence[GoldenPrompt]) -> None:
    """Logits behind each prompt, then greedy tokens, for which the prompts decode together."""
    with ExitStack() as stack:
        going = []
        for prompt in prompts:
            session = stack.enter_context(engine.session())
            logits = session.prefill(prompt.prompt_ids)
            np.testing.assert_allclose(logits[prompt.top5_ids], prompt.top5_logits, rtol=0, atol=1e-3)
            going.append((prompt, session, logits))
        for i in range(len(prompts[0].greedy_ids)):
            chosen = []
            for prompt, session, logits in going:
                if logits.argmax() == prompt.greedy_ids[i]:
                    chosen.append((prompt, session))
                else:
                    assert prompt.greedy_margins[i] < MARGIN, f"{prompt.text!r}"
            if not chosen:
                break
            tokens = [prompt.greedy_ids[i] for prompt, _ in chosen]
            rows = decode_together([session for _, session in chosen], tokens).copy()
            going = [(*pair, row) for pair, row in zip(chosen, rows, strict=True)]


def check_nll(engine: yakvrt.Engine, name: str, n_tokens: int, tolerance: float) -> None:
    stored = golden(name).nll[n_tokens]
    ids = engine.tokenizer.encode(text_excerpt(n_tokens), add_special=False)[:n_tokens]
    assert stored.matches(ids)
    with engine.session() as session:
        assert abs(mean_nll(session, ids) - stored.mean_nll) < tolerance


def test_smollm2_float32_prompts(exact_smollm2: yakvrt.Engine) -> None:
    for prompt in golden(SMOLLM2_FLOAT32).prompts:
        check_prompts(exact_smollm2, [prompt])


@pytest.mark.parametrize("n_tokens", [1000, 4096])
def test_smollm2_float32_nll(exact_smollm2: yakvrt.Engine, n_tokens: int) -> None:
    check_nll(exact_smollm2, SMOLLM2_FLOAT32, n_tokens, 1e-4)


@pytest.mark.parametrize("cache_type", ["f16", "bf16"])
def test_smollm2_int8_nll(smollm2_path: Path, cache_type: str) -> None:
    with yakvrt.load(str(smollm2_path), cache_type=cache_type, ctx_size=4096) as engine:
        check_nll(engine, SMOLLM2_FLOAT32, 1000, 0.01)
        check_nll(engine, SMOLLM2_FLOAT32, 4096, 0.01)


def test_qwen_coder_float32(qwen_coder_path: Path) -> None:
    """Its weights take 6 GB, which a step reads once for both prompts."""
    with yakvrt.load(str(qwen_coder_path), dtype="f32", cache_type="f32", ctx_size=1024, n_slots=2) as engine:
        check_prompts(engine, golden(QWEN25_CODER_FLOAT32).prompts)
        check_nll(engine, QWEN25_CODER_FLOAT32, 1000, 1e-4)


def test_qwen_coder_int8_nll(qwen_coder_path: Path) -> None:
    with yakvrt.load(str(qwen_coder_path), ctx_size=1024) as engine:
        check_nll(engine, QWEN25_CODER_FLOAT32, 1000, 0.01)
