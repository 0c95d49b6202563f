"""bench/bench_recall.py: what it says of a method is so."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_values import tiny_cases, tiny_dir
from tiny_files import byte_copy

import yakvrt
from yakvrt.kvcache import METHODS, open_method

sys.path.append(str(Path(__file__).parent.parent / "bench"))

import attention_truth
import bench_recall
from decode_replay import Replay, StepInputs
from kept_rows import KeptRows
from prompt_capture import PromptRows, feed
from rows_read import reading
from teacher_tokens import TeacherTokens, of_gold
from value_marks import ValueMarks

N_PROMPT, N_NEW = 230, 12
# Methods that choose few rows, and how far their outputs may be from attention over the rows they name.
FEW: Mapping[str, tuple[Mapping[str, str], float]] = {
    "full": ({}, 1e-4),
    "quest": ({"sparse_budget": "32", "min_pages": "1", "window": "2", "dense_layers": "1"}, 1e-4),
    "arkvale": ({"sparse_budget": "32", "cache_budget": "96", "page": "16", "dense_layers": "1"}, 1e-4),
    "shadowkv": ({"sparse_budget": "32", "rank": "4096", "outliers": "16"}, 0.02),
    "lrqk": ({"sparse_budget": "32"}, 1e-4),
    "infinigen": ({"sparse_budget": "32", "dense_layers": "1"}, 1e-4),
    "oracle": ({"sparse_budget": "32"}, 1e-4),
    "yakv": (
        {"sparse_budget": "32", "min_seqlen_to_prune": "0", "k_bits": "16", "v_bits": "16", "tail": "0"},
        1e-2,
    ),
    "yakv-paper": ({"sparse_budget": "32"}, 0.4),
}
KNOWN = [name for name in FEW if name in METHODS]


def ids(n: int) -> list[int]:
    return tiny_cases("qwen2")[3].ids[:n]


@pytest.fixture(scope="module")
def engine() -> Iterator[yakvrt.Engine]:
    path = str(tiny_dir("qwen2"))
    with yakvrt.load(path, dtype="f32", cache_type="f32", ctx_size=384, ubatch_size=64, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def recall(engine: yakvrt.Engine) -> Any:
    """A study under way: the prompt is taken in and full attention decoded."""
    tokens = TeacherTokens.split(ids(N_PROMPT + N_NEW + 1), N_PROMPT, N_NEW)
    made = bench_recall.Recall(engine, tokens, "f32")
    made.prefill()
    made.full()
    return made


def attention(study: Any, layer: int, step: int, read: np.ndarray) -> np.ndarray:
    """Attention over the rows named, per head that chooses, in float64. Returns: [Hq * D]."""
    config, n = study.setting.config, read.shape[1]
    heads, dim = config.n_kv_heads, config.head_dim
    mark = ValueMarks(study.setting).mark
    k = np.concatenate([study.prompt.k[layer], study.inputs.arrays["k"][layer]])[:n].reshape(n, heads, dim)
    new = np.concatenate([study.prompt.v[layer], study.inputs.arrays["v"][layer]])
    v = mark(new, 0)[:n].reshape(n, heads, dim)
    q = study.inputs.arrays["q"][layer, step].reshape(config.n_heads, dim).astype(np.float64)
    out = []
    for head, row in enumerate(q):
        chosen = read[head * len(read) // config.n_heads]
        of = head * heads // config.n_heads
        logits = k[chosen, of] @ row * dim**-0.5
        weights = np.exp(logits - logits.max())
        out.append(weights / weights.sum() @ v[chosen, of])
    return np.concatenate(out)


def test_every_module_can_be_read_or_is_known_not_to() -> None:
    assert {preset.module for preset in METHODS.values()} == {METHODS[name].module for name in KNOWN}


@pytest.mark.parametrize("name", KNOWN)
def test_the_rows_reported_are_the_rows_attended_to(name: str, recall: Any) -> None:
    """Attention over the reported rows is the method's output, and is not without the heaviest of them."""
    study, (args, tolerance) = recall._study, FEW[name]
    setting, mark = study.setting, ValueMarks(study.setting).mark
    module, parameters = open_method(name, args)
    method = module.build(setting, parameters)
    slot = method.open(setting.ctx_size)
    feed(setting, method, slot, study.prompt, mark)
    replay = Replay(setting, method, slot, study.inputs, mark)
    n_read = []
    with reading(setting, module, method, parameters, replay) as rows:
        for step in range(N_NEW):
            for layer in range(setting.config.n_layers):
                out = replay.run(step, layer)
                read = rows(layer, N_PROMPT + step)
                assert read is not None
                assert read.shape[1] == N_PROMPT + step + 1
                n_read.append(read.sum() / len(read))
                expected = attention(study, layer, step, read)
                distance = np.linalg.norm(out - expected) / np.linalg.norm(expected)
                assert distance < tolerance, (step, layer)
                weights = study.truth.weights(layer, len(read))[step, :, : read.shape[1]]
                read[np.arange(len(read)), np.where(read, weights, -1).argmax(axis=1)] = False
                other = attention(study, layer, step, read)
                assert np.linalg.norm(out - other) / np.linalg.norm(expected) > distance
    if name != "full":
        assert min(n_read) < 0.6 * N_PROMPT


def test_values_without_marks_are_not_taken_for_rows(recall: Any) -> None:
    study = recall._study
    module, parameters = open_method("oracle", {})
    method = module.build(study.setting, parameters)
    slot = method.open(study.setting.ctx_size)
    feed(study.setting, method, slot, study.prompt)
    replay = Replay(study.setting, method, slot, study.inputs)
    with reading(study.setting, module, method, parameters, replay) as rows:
        replay.run(0, 0)
        assert rows(0, N_PROMPT) is None


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_marks_name_positions_and_move_values_by_one_unit(kind: str, recall: Any) -> None:
    marks = ValueMarks(replace(recall._setting, kind=kind, ctx_size=60000))
    config = recall._setting.config
    values = np.random.default_rng(3).standard_normal((500, config.n_kv_heads * config.head_dim), np.float32)
    for first in (0, 59500):
        marked = marks.mark(values, first)
        found = marks.positions(marked.reshape(500, config.n_kv_heads, config.head_dim))
        np.testing.assert_array_equal(found, np.arange(first, first + 500)[:, None] + [0] * config.n_kv_heads)
        unit = {"f32": 2**-23, "f16": 2**-10, "bf16": 2**-7}[kind]
        assert (np.abs(marked - values) <= 2 * unit * np.abs(values)).all()


@pytest.mark.parametrize("name", ["full", "lrqk", "infinigen", "shadowkv", "yakv"])
def test_a_fed_prompt_is_the_model_s(name: str, engine: yakvrt.Engine, recall: Any) -> None:
    """Decoding behind a prompt that was fed gives the logits of one that the model took in."""
    found = []
    for fed in (True, False):
        module, parameters = open_method(name, FEW[name][0])
        method = module.build(recall._setting, parameters)
        slot, runner = method.open(recall._setting.ctx_size), engine.runner.over(method)
        if fed:
            feed(recall._setting, method, slot, recall._prompt)
        else:
            runner.prefill(slot, 0, ids(N_PROMPT))
        found.append(np.array([runner.decode([slot], [N_PROMPT + i], [t])[0] for i, t in enumerate(ids(5))]))
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-4 * np.abs(found[1]).max())


def test_full_attention_is_the_truth(recall: Any) -> None:
    study = recall._study
    for layer in range(study.setting.config.n_layers):
        read = np.ones((study.setting.config.n_kv_heads, N_PROMPT + 5), bool)
        expected = attention(study, layer, 4, read)
        np.testing.assert_allclose(study.outputs[layer, 4], expected, atol=1e-4 * np.abs(expected).max())
    everything = {"sparse_budget": "4096", "dense_layers": "1"}
    found = recall.row(("quest", "quest", everything), lambda what, share: None)
    assert found["attention_error"] < 1e-5
    assert found["mass_covered"] == pytest.approx(1, abs=1e-5)
    assert found["recall"] == 1
    assert found["kl_mean"] == pytest.approx(0, abs=1e-9)


def test_the_oracle_reads_the_best_rows_and_little_is_little(recall: Any) -> None:
    def row(name: str, budget: str, **more: str) -> dict[str, Any]:
        found: dict[str, Any] = recall.row((name, name, {"sparse_budget": budget, **more}), lambda *_: None)
        return found

    few, many = row("oracle", "8"), row("oracle", "64")
    assert few["recall"] == many["recall"] == 1  # the best of all are the first and last, or the best between
    assert few["attention_error"] > many["attention_error"]
    assert few["mass_covered"] < many["mass_covered"] < 1
    assert len(few["attention_error_by_layer"]) == recall._setting.config.n_layers
    config = recall._setting.config
    assert few["gross_bytes"] == 8 * config.n_layers * config.n_kv_heads * 2 * config.head_dim * 4
    assert row("lrqk", "8")["recall"] < 1


def planted(recall: Any, place: int) -> attention_truth.AttentionTruth:
    """A truth in which the row at `place` has almost all probability, for all heads of layer 0."""
    setting, config = recall._setting, recall._setting.config
    prompt = PromptRows.empty(setting, 40)
    inputs = StepInputs.empty(setting, 40, 2)
    rng = np.random.default_rng(1)
    prompt.k[:] = 0.01 * rng.standard_normal(prompt.k.shape, np.float32)
    for array in inputs.arrays.values():
        array[:] = 0.01
    aim = rng.standard_normal(config.head_dim, np.float32) * 6
    prompt.k[0, place] = np.tile(aim, config.n_kv_heads)
    inputs.arrays["q"][0] = np.tile(aim, config.n_heads)
    return attention_truth.AttentionTruth(setting, prompt, inputs)


@pytest.mark.parametrize("per_query_head", [False, True])
def test_a_planted_row_is_the_mass_and_the_best_one(per_query_head: bool, recall: Any) -> None:
    config = recall._setting.config
    choosers = config.n_heads if per_query_head else config.n_kv_heads
    truth = planted(recall, 17)
    read = np.zeros((choosers, 42), bool)
    assert truth.mass_covered(0, 1, read) == 0
    read[:, 16] = True
    assert truth.mass_covered(0, 1, read) < 0.01
    assert truth.recall(0, 1, read, 1) == 0
    read[: choosers // 2, 17] = True
    assert truth.mass_covered(0, 1, read) == pytest.approx(0.5, abs=0.01)
    assert truth.recall(0, 1, read, 1) == 0.5
    assert truth.recall(0, 1, np.ones((choosers, 42), bool), 1000) == 1


def test_the_error_is_relative_by_kv_head() -> None:
    exact, found = np.array([3.0, 4, 0, 10]), np.array([3.0, 4.5, 1, 10])
    assert attention_truth.output_error(found, exact, 2) == pytest.approx((0.5 / 5 + 1 / 10) / 2)


@pytest.fixture
def byte_model(tmp_path: Path) -> Path:
    return byte_copy("qwen2", tmp_path / "model")


def test_the_whole_answer_is_scored(byte_model: Path, tmp_path: Path) -> None:
    question, answer = tmp_path / "question", tmp_path / "answer"
    question.write_text("List the names.")
    answer.write_text("Ada, Bo")
    with yakvrt.load(str(byte_model), dtype="f32", ctx_size=64, threads=1) as loaded:
        prompt, gold = loaded.tokenizer.encode("List the names."), loaded.tokenizer.encode("Ada, Bo")
        tokens = of_gold(loaded, question, answer, 100, raw=True)
        assert tokens.prompt == prompt[:-1]
        assert tokens.fed == [prompt[-1], *gold[:-1]]
        assert tokens.targets == gold
        assert of_gold(loaded, question, answer, 2, raw=True).targets == gold[:2]


def test_rows_are_kept_for_their_study_alone(tmp_path: Path) -> None:
    path, row = tmp_path / "result.json", {"method": "yakv", "parameters": {"sparse_budget": "0.1"}, "kl": 1}
    KeptRows(path, {"depth": 8}).add(row)
    assert json.loads(path.read_text())["rows"] == [row]
    kept = KeptRows(path, {"depth": 8})
    assert ("yakv", (("sparse_budget", "0.1"),)) in kept
    assert ("yakv", (("sparse_budget", "0.2"),)) not in kept
    with pytest.raises(ValueError, match="another study"):
        KeptRows(path, {"depth": 9})


def test_a_second_run_measures_what_is_missing(
    byte_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, out = tmp_path / "text", tmp_path / "out.json"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    command = ["bench_recall.py", "--model", str(byte_model), "-f", str(text), "--depth", "100"]
    command += ["--new", "3", "--threads", "1", "--budgets", "8", "--out", str(out)]

    def measured(methods: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [*command, "--methods", methods])
        assert bench_recall.main() == 0
        *lines, last = capsys.readouterr().out.splitlines()
        assert [row["method"] for row in json.loads(last)["rows"]][1:] == methods.split(",")
        return [line.split()[0] for line in lines if not line.startswith("prefill")]

    assert measured("oracle") == ["full", "oracle"]
    assert measured("oracle,quest:dense_layers=1") == ["full", "quest:dense_layers=1"]
    assert measured("oracle,quest:dense_layers=1") == []
