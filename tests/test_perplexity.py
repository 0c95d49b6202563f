"""Perplexity's protocol and the saved log-probabilities, over an exact small model; then the real one."""

from __future__ import annotations

import json
import math
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yakvrt import perplexity
from yakvrt.kl_divergence import (
    HEADER,
    MAGIC,
    Comparison,
    LogProbWriter,
    SavedLogProbs,
    chunk_line,
    log_softmax,
    n_scored,
    report,
)
from yakvrt.perplexity import cut_windows, mean_nll, window_blocks

VOCAB = 40
EXCERPT = Path(__file__).parent / "data" / "golden" / "room_with_a_view_excerpt.txt"
# llama.cpp's own kernels on the same file, excerpt and windows (3 of 512 tokens).
LLAMACPP_PPL = 21.6059
Rows = np.ndarray[Any, np.dtype[np.float32]]


class TableModel:
    """Logits from the last two ids held; all_logits comes in uneven chunks."""

    def __init__(self, seed: int = 0, scale: float = 2.0) -> None:
        rng = np.random.default_rng(seed)
        self.table = rng.normal(0, scale, (VOCAB, VOCAB, VOCAB)).astype(np.float32)
        self.ids: list[int] = []

    def row(self) -> Rows:
        return self.table[self.ids[-2] if len(self.ids) > 1 else 0, self.ids[-1]]

    def truncate(self, n: int) -> None:
        del self.ids[n:]

    def prefill(self, ids: Sequence[int]) -> Rows:
        self.ids += ids
        return self.row()

    def all_logits(self, ids: Sequence[int]) -> Iterator[Rows]:
        for start in range(0, len(ids), 21):
            rows = []
            for token in ids[start : start + 21]:
                self.ids.append(token)
                rows.append(self.row())
            yield np.stack(rows)

    def decode(self, token: int) -> Rows:
        self.ids.append(token)
        return self.row()


class WordTokenizer:
    """Words are numbers; BOS is 1 when asked for."""

    def __init__(self, *, adds_bos: bool) -> None:
        self.bos_id = 1
        self.adds_bos = adds_bos

    def encode(self, text: str) -> list[int]:
        return ([1] if self.adds_bos else []) + [int(word) for word in text.split()]


def true_nll(model: TableModel, ids: list[int], first: int) -> list[float]:
    """The definition, one position at a time in float64; positions before first are context."""
    scores = []
    for at in range(first, len(ids)):
        row = model.table[ids[at - 2] if at > 1 else 0, ids[at - 1]].astype(np.float64)
        scores.append(math.log(np.exp(row).sum()) - row[ids[at]])
    return scores


def random_ids(n: int) -> list[int]:
    return np.random.default_rng(5).integers(2, VOCAB, n).tolist()


@pytest.mark.parametrize("n", [2, 3, 17, 100])
def test_mean_nll_is_the_definition(n: int) -> None:
    model, ids = TableModel(), random_ids(n)
    model.prefill([3, 4])  # what an earlier use left in the slot
    assert mean_nll(model, ids) == pytest.approx(np.mean(true_nll(model, ids, 1)), abs=1e-6)


def test_mean_nll_needs_two_ids() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        mean_nll(TableModel(), [1])


@pytest.mark.parametrize("decodes", [False, True])
@pytest.mark.parametrize("n_ctx", [4, 5, 64, 75])
def test_a_window_scores_its_second_half_less_one(n_ctx: int, decodes: bool) -> None:
    model, ids = TableModel(), random_ids(n_ctx)
    targets: list[int] = []
    scores: list[float] = []
    for block, rows in window_blocks(model, np.array(ids, np.int32), decodes=decodes):
        assert len(rows) == len(block) <= 16
        targets += block.tolist()
        scores += (-log_softmax(rows)[np.arange(len(block)), block]).tolist()
    first = n_ctx // 2 + 1
    assert targets == ids[first:]
    assert len(targets) == n_scored(n_ctx)
    assert scores == pytest.approx(true_nll(model, ids, first), abs=1e-5)


def test_windows_begin_with_bos_when_the_model_uses_one() -> None:
    text = " ".join(map(str, random_ids(30)))
    plain = cut_windows(WordTokenizer(adds_bos=False), text, 8, -1)  # type: ignore[arg-type]
    assert plain.tolist() == np.reshape(random_ids(24), (3, 8)).tolist()
    begun = cut_windows(WordTokenizer(adds_bos=True), text, 8, 2)  # type: ignore[arg-type]
    whole = [1, *random_ids(15)]
    assert begun.tolist() == [whole[:8], [1, *whole[9:]]]
    with pytest.raises(ValueError, match="at least 40"):
        cut_windows(WordTokenizer(adds_bos=False), text, 20, -1)  # type: ignore[arg-type]


def save(path: Path, model: TableModel, windows: np.ndarray[Any, np.dtype[np.int32]]) -> None:
    with LogProbWriter(path, windows, VOCAB) as saved:
        for window in windows:
            for _, rows in window_blocks(model, window, decodes=False):
                saved.write(log_softmax(rows))


def compare(path: Path, model: TableModel) -> dict[str, Any]:
    base, comparison = SavedLogProbs(path), Comparison.empty()
    for number, window in enumerate(base.windows):
        rows, at = base.rows(number), 0
        for targets, logits in window_blocks(model, window, decodes=False):
            comparison.add(log_softmax(logits), rows[at : at + len(logits)], targets)
            at += len(logits)
    return comparison.statistics()


@pytest.fixture
def windows() -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(random_ids(5 * 50), np.int32).reshape(5, 50)


def test_a_model_compared_with_itself_shows_no_distance(
    tmp_path: Path, windows: np.ndarray[Any, np.dtype[np.int32]]
) -> None:
    path = tmp_path / "base.kl"
    save(path, TableModel(), windows)
    assert [entry.name for entry in tmp_path.iterdir()] == ["base.kl"]
    base = SavedLogProbs(path)
    assert base.windows.tolist() == windows.tolist()
    stats = compare(path, TableModel())
    assert stats["n_tokens"] == 5 * 24
    assert abs(stats["kld"][0]) < 1e-6
    assert stats["same_top_p"][0] == 100
    assert stats["ppl"][0] == pytest.approx(stats["ppl_base"][0], rel=1e-4)


def test_statistics_are_those_of_the_exact_distributions(
    tmp_path: Path, windows: np.ndarray[Any, np.dtype[np.int32]]
) -> None:
    base, other = TableModel(), TableModel()
    noise = np.random.default_rng(1).normal(0, 0.4, base.table.shape).astype(np.float32)
    other.table = other.table + noise
    path = tmp_path / "base.kl"
    save(path, base, windows)
    stats = compare(path, other)
    nll, nll_base, kld, delta, same = [], [], [], [], []
    for window in windows.tolist():
        nll += true_nll(other, window, 26)
        nll_base += true_nll(base, window, 26)
        for at in range(26, 50):
            p, q = (m.table[window[at - 2], window[at - 1]].astype(np.float64) for m in (base, other))
            p, q = np.exp(p) / np.exp(p).sum(), np.exp(q) / np.exp(q).sum()
            kld.append((p * np.log(p / q)).sum())
            delta.append(100 * (q[window[at]] - p[window[at]]))
            same.append(p.argmax() == q.argmax())
    n = len(nll)
    ratio = np.array(nll) - np.array(nll_base)
    assert stats["ppl"][0] == pytest.approx(math.exp(np.mean(nll)), rel=1e-4)
    assert stats["ppl"][1] == pytest.approx(math.exp(np.mean(nll)) * np.std(nll) / math.sqrt(n - 1), rel=1e-3)
    assert stats["ln_ratio"] == pytest.approx((ratio.mean(), ratio.std() / math.sqrt(n - 1)), abs=2e-4)
    assert stats["correlation"] == pytest.approx(100 * np.corrcoef(nll, nll_base)[0, 1], abs=0.01)
    assert stats["kld"] == pytest.approx((np.mean(kld), np.std(kld) / math.sqrt(n - 1)), abs=1e-4)
    assert stats["kld_range"]["90.0%"] == pytest.approx(np.percentile(kld, 90), abs=1e-3)
    assert stats["delta_p"][0] == pytest.approx(np.mean(delta), abs=0.01)
    assert stats["delta_p_rms"][0] == pytest.approx(math.sqrt(np.mean(np.square(delta))), abs=0.01)
    assert stats["same_top_p"][0] == pytest.approx(100 * np.mean(same))
    text = report(stats)
    for line in ("Mean    KLD: ", "99.9%   KLD: ", " 0.1%   Δp: ", "RMS Δp    : ", "Same top p: "):
        assert line in text
    assert chunk_line(1, stats).count("±") == 5
    json.dumps(stats)


def test_uniform_rows_and_impossible_words_are_saved(tmp_path: Path) -> None:
    window = np.arange(4, dtype=np.int32)[None]
    for logits in (np.zeros((1, 4), np.float32), np.array([[0, -np.inf, 5, -200]], np.float32)):
        with LogProbWriter(tmp_path / "f", window, 4) as saved:
            saved.write(log_softmax(logits))
        row = SavedLogProbs(tmp_path / "f").rows(0)
        found = row["lowest"] + row["codes"][0] * row["step"]
        truth = np.maximum(log_softmax(logits)[0], log_softmax(logits).max() - 24)
        assert np.abs(found - truth).max() < 2e-4


def test_an_interrupted_save_leaves_nothing(
    tmp_path: Path, windows: np.ndarray[Any, np.dtype[np.int32]]
) -> None:
    with pytest.raises(KeyboardInterrupt), LogProbWriter(tmp_path / "f", windows, VOCAB):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="is a directory"):
        LogProbWriter(tmp_path, windows, VOCAB)
    with pytest.raises(ValueError, match="lower --chunks"):
        LogProbWriter(tmp_path / "f", np.zeros((1 << 20, 2048), np.int32), 1 << 20)


def test_only_a_regular_file_is_replaced_and_links_are_kept(
    tmp_path: Path, windows: np.ndarray[Any, np.dtype[np.int32]]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "to_pipe", "loop"):
        with pytest.raises(ValueError, match="no regular file; name a file"):
            LogProbWriter(tmp_path / name, windows, VOCAB)
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(ValueError, match="does not exist; make it first"):
        LogProbWriter(tmp_path / "missing" / "f", windows, VOCAB)
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "base.kl")
    for _ in range(2):  # the target is made, then replaced
        save(tmp_path / "link", TableModel(), windows)
        assert (tmp_path / "link").is_symlink()
        assert len(SavedLogProbs(tmp_path / "disk" / "base.kl").windows) == len(windows)


def test_a_file_that_cannot_grow_is_named(
    tmp_path: Path, windows: np.ndarray[Any, np.dtype[np.int32]]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"base\.kl cannot be written \(File too large\); free some"):
            save(tmp_path / "base.kl", TableModel(), windows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_context_other_than_the_bases_is_refused(
    tmp_path: Path, windows: np.ndarray[Any, np.dtype[np.int32]], capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "base.kl", TableModel(), windows)
    base = ["--kl-divergence", "--kl-divergence-base", str(tmp_path / "base.kl")]
    for given in ("512", "0"):
        assert perplexity.main([*base, "-c", given]) == 2
        assert "whose chunks have 50 tokens; leave --ctx-size out" in capsys.readouterr().err
    for given in ([], ["-c", "50"]):
        assert perplexity.main([*base, *given, "-m", str(tmp_path / "none.gguf")]) == 1
        assert "does not exist" in capsys.readouterr().err


def test_hostile_files_are_refused(tmp_path: Path, windows: np.ndarray[Any, np.dtype[np.int32]]) -> None:
    path = tmp_path / "base.kl"
    save(path, TableModel(), windows)
    good = path.read_bytes()
    bad = [b"", good[:10], b"x" * 100, good[:-1], good + b"\0"]
    bad += [HEADER.pack(MAGIC, version, 50, VOCAB, 5) + good[HEADER.size :] for version in (0, 2)]
    sizes = [(2**32 - 1,) * 3, (0, 0, 0), (50, 2**31, 5), (3, VOCAB, 5), (50, VOCAB, 0)]
    bad += [HEADER.pack(MAGIC, 1, *size) + good[HEADER.size :] for size in sizes]
    bad += [good[: HEADER.size] + struct.pack("<i", token) + good[HEADER.size + 4 :] for token in (-1, VOCAB)]
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"save it again|make it with") as refusal:
            SavedLogProbs(path)
        assert "\n" not in str(refusal.value)


def run_verb(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "yakvrt.perplexity", "--offline", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_real_model_scores_as_llama_cpp_does(smollm2_path: Path) -> None:
    shown = run_verb("-m", str(smollm2_path), "-f", str(EXCERPT), "--chunks", "3")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("[1]")
    final = shown.stdout.splitlines()[-1]
    assert final.startswith("Final estimate: PPL = ")
    assert float(final.split()[4]) == pytest.approx(LLAMACPP_PPL, rel=0.015)


def test_the_real_model_against_itself(smollm2_path: Path, tmp_path: Path) -> None:
    base = str(tmp_path / "base.kl")
    common = ("-m", str(smollm2_path), "--json", "--kl-divergence-base", base)
    saved = run_verb(*common, "-f", str(EXCERPT), "-c", "64", "--chunks", "2")
    assert saved.returncode == 0, saved.stderr
    compared = run_verb(*common, "--kl-divergence")
    assert compared.returncode == 0, compared.stderr
    stats = json.loads(compared.stdout)
    assert stats["ppl"][0] == pytest.approx(json.loads(saved.stdout)["ppl"], rel=1e-6)
    assert abs(stats["kld"][0]) < 1e-4
    assert stats["same_top_p"][0] == 100


def test_a_kv_method_is_scored_by_what_it_reads(smollm2_path: Path, tmp_path: Path) -> None:
    flags = "-m", str(smollm2_path), "--kl-divergence-base", str(tmp_path / "base.kl")
    shown = run_verb(*flags, "-f", str(EXCERPT), "-c", "200", "--chunks", "1", "--kv", "full")
    assert shown.returncode == 0, shown.stderr
    found = {}
    for label, budget in (("all rows", "200"), ("few", "4")):
        args = "--kv", "oracle", "--kv-args", f"sparse_budget={budget}"
        shown = run_verb(*flags, "--kl-divergence", *args, "--json")
        assert shown.returncode == 0, shown.stderr
        result = json.loads(shown.stdout)
        assert result["kv"] == "oracle"
        found[label] = result["kld"][0]
    assert found["all rows"] < 0.01  # rounded activations leave as much
    assert found["few"] > 5 * found["all rows"]
