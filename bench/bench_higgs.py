"""HIGGS kernels: rows encoded per second, time to decode a row, scoring against a plain read, selection.

    python bench/bench_higgs.py --threads 2 --out bench/results/NAME.json

Scoring runs over codes larger than the caches, in turn with a read of the same bytes; all heads write the
same logits, as the layers of a model do.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import result_file
from bench_kernels import READ, seconds, tape_of

from yakvrt.cpu.kernel_cache import KernelCache
from yakvrt.cpu.memory import aligned, aligned_array
from yakvrt.cpu.tape import Tape
from yakvrt.cpu.team import Team
from yakvrt.cpu.topology import default_threads
from yakvrt.higgs_grids import load_grid
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.higgs_encode import encode_scratch_bytes
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS, ROW_FORMATS, SELECTORS, pack_tables
from yakvrt.kernels.higgs_score import query_bytes
from yakvrt.kernels.select_topk import keys_bytes, select_scratch_bytes

SCORED_TOKENS = 16384  # of one head
RNG = np.random.default_rng(1)


class Bench:
    """Compiled kernels, a team, and how often everything is timed."""

    def __init__(self, threads: int, reps: int) -> None:
        self.cache = KernelCache()
        self.threads, self.reps = threads, reps
        self.team, self.one = Team(threads, self.cache), Team(1, self.cache)

    def best(self, team: Team, op: str, builder: str, parameters: tuple[Any, ...], *arguments: Any) -> float:
        """The fastest of `reps` runs, in seconds: what the kernel costs where others leave it alone."""
        tape = tape_of(self.cache, kernel(op, builder, *parameters), *arguments)
        seconds(team, tape)
        return min(seconds(team, tape) for _ in range(self.reps))


def tables_of(name: str | None) -> np.ndarray | int:
    return pack_tables(load_grid(name)) if name else 0


def encode_rows(bench: Bench, row_format: str, head_dim: int) -> dict[str, Any]:
    n = 20_000
    rows = RNG.standard_normal((n, head_dim), np.float32)
    codes = aligned(n * ROW_FORMATS[row_format].n_bytes(head_dim)).reshape(n, -1)
    scales = np.zeros((n, 2), np.float16)
    scratch = aligned(bench.threads * encode_scratch_bytes(head_dim)).reshape(bench.threads, -1)
    arguments = (rows, rows.strides[0], 0, np.array([n]), codes, codes.strides[0], scales, 4)
    arguments += (tables_of(ROW_FORMATS[row_format].grid), scratch, scratch.strides[0])
    parameters = (row_format, head_dim, "norm", False)
    taken = bench.best(bench.team, "higgs_rows", "encode_rows_cpu", parameters, *arguments)
    return {
        "op": f"encode row {row_format}",
        "head_dim": head_dim,
        "mega_rows_per_s": round(n / taken / 1e6, 3),
    }


def encode_selector(bench: Bench, kind: str, head_dim: int) -> dict[str, Any]:
    n, selector = 20_480, SELECTORS[kind]
    rows = RNG.standard_normal((n, head_dim), np.float32)
    blocks = aligned(n // BLOCK_TOKENS * selector.block_bytes(head_dim))
    scratch = aligned(bench.threads * encode_scratch_bytes(head_dim)).reshape(bench.threads, -1)
    arguments = (rows, rows.strides[0], 0, np.array([n]), blocks, tables_of(selector.grid))
    arguments += (tables_of(selector.mean_grid), scratch, scratch.strides[0])
    parameters = (kind, head_dim, "unbiased", False)
    taken = bench.best(bench.team, "higgs_selector", "encode_selector_cpu", parameters, *arguments)
    return {
        "op": f"encode selector {kind}",
        "head_dim": head_dim,
        "mega_rows_per_s": round(n / taken / 1e6, 3),
    }


def decode_rows(bench: Bench, row_format: str, head_dim: int) -> dict[str, Any]:
    """One thread; all rows to the same place, as attention decodes them."""
    n = 50_000
    codes = RNG.integers(0, 255, (n, ROW_FORMATS[row_format].n_bytes(head_dim))).astype(np.uint8)
    scales, out = np.ones((n, 2), np.float16), aligned_array((head_dim,), np.float32)
    arguments = (out, 0, codes, codes.strides[0], scales, 4, tables_of(ROW_FORMATS[row_format].grid))
    parameters = (row_format, head_dim)
    taken = bench.best(bench.one, "higgs_rows", "decode_rows_cpu", parameters, *arguments, np.array([n]))
    return {
        "op": f"decode row {row_format}",
        "head_dim": head_dim,
        "ns_per_row": round(taken / n * 1e9, 1),
        "ns_per_pair": round(taken / n / head_dim * 2e9, 3),
    }


def score_tape(
    bench: Bench, blocks: np.ndarray, kind: str, head_dim: int, group: int, n: int, n_heads: int, stride: int
) -> Tape:
    """n tokens of every head, whose blocks lie `stride` bytes apart; all heads write the same logits."""
    selector = SELECTORS[kind]
    logits = aligned_array((group, n + 16), np.float32)
    maxima = aligned_array((n_heads, bench.threads, group), np.float32)
    q = RNG.standard_normal((n_heads, group, head_dim), np.float32)
    scratch = aligned(bench.threads * (group * query_bytes(kind, head_dim) + 8 * head_dim + 64))
    scratch = scratch.reshape(bench.threads, -1)
    arguments = (logits, logits.strides[0], maxima, q, 0, np.array([0.1], np.float32), blocks, stride)
    arguments += (
        n_heads,
        np.array([n // BLOCK_TOKENS]),
        tables_of(selector.grid),
        tables_of(selector.mean_grid),
    )
    spec = kernel("higgs_score", "higgs_score_cpu", kind, head_dim, group, False)
    return tape_of(bench.cache, spec, *arguments, scratch, scratch.strides[0], 0)


def score(bench: Bench, kind: str, head_dim: int, group: int, megabytes: int) -> dict[str, Any]:
    n = SCORED_TOKENS
    head_bytes = n // BLOCK_TOKENS * SELECTORS[kind].block_bytes(head_dim)
    n_heads = megabytes * 1_000_000 // head_bytes
    blocks = aligned(n_heads * head_bytes)
    blocks[:] = 0x11
    ours = score_tape(bench, blocks, kind, head_dim, group, n, n_heads, head_bytes)
    n_bytes, sums = n_heads * head_bytes, aligned_array((bench.threads, 16), np.float32)
    read = tape_of(bench.cache, READ, blocks, n_bytes // 4096 * 4096, sums)
    seconds(bench.team, ours)
    pairs = [(seconds(bench.team, ours), seconds(bench.team, read)) for _ in range(bench.reps)]
    sides = list(zip(*pairs, strict=True))
    rates = [n_bytes / statistics.median(side) / 1e9 for side in sides]
    fastest = [n_bytes / min(side) / 1e9 for side in sides]
    return {
        "op": f"score {kind}",
        "head_dim": head_dim,
        "group": group,
        "score_gbps": round(rates[0], 1),
        "read_gbps": round(rates[1], 1),
        "ratio": round(statistics.median(b / a for a, b in pairs), 3),
        "fastest_score_gbps": round(fastest[0], 1),
        "fastest_read_gbps": round(fastest[1], 1),
    }


def select(bench: Bench, n: int, k: int, n_heads: int = 200) -> dict[str, Any]:
    """One thread, rule "mean" of one query: next to no time for the weights themselves."""
    logits = (RNG.standard_normal((n_heads, n)) * 3).astype(np.float32)
    ids, counts = np.zeros((n_heads, k), np.int32), np.zeros(n_heads, np.int64)
    scratch = aligned(keys_bytes(n) + select_scratch_bytes(n))
    lse, lengths, budgets = np.full((n_heads, 1), 5, np.float32), np.full(n_heads, n), np.full(n_heads, k)
    arguments = (ids, ids.strides[0], counts, logits, logits.strides[0], lse, lengths, budgets)
    arguments += (np.array([n_heads]), scratch, 0)
    taken = {
        rule: bench.best(bench.one, "select_topk", "select_topk_cpu", (rule, 1), *arguments) / n_heads * 1e6
        for rule in ("mean", "sum")
    }
    return {"op": "select", "n": n, "k": k, **{f"{rule}_us": round(each, 2) for rule, each in taken.items()}}


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="HIGGS kernels.")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--megabytes", type=int, default=128, help="bytes of codes that are scored (128 MB)")
    parser.add_argument("--reps", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    bench = Bench(args.threads, args.reps)
    rows: list[dict[str, Any]] = []

    def report(row: dict[str, Any]) -> None:
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    for head_dim in (64, 128):
        for row_format in ROW_FORMATS:
            report(encode_rows(bench, row_format, head_dim))
        for kind in SELECTORS:
            report(encode_selector(bench, kind, head_dim))
        for row_format in ROW_FORMATS:
            report(decode_rows(bench, row_format, head_dim))
    for kind in SELECTORS:
        for head_dim, group in ((64, 3), (64, 4), (128, 4), (128, 6)):
            report(score(bench, kind, head_dim, group, args.megabytes))
    for n, k in ((2048, 64), (8192, 256), (32768, 1024), (131072, 4096)):
        report(select(bench, n, k))
    bench.team.close()
    bench.one.close()
    result = {"bench": "higgs", **result_file.facts(), "threads": args.threads, "rows": rows}
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
