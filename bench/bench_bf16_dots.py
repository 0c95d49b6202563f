"""Prompts of bfloat16 weights by dot products of bfloat16 against those by float32 multiply-adds, in turns.

    python bench/bench_bf16_dots.py --model smollm2-135m --n-prompt 512 --out bench/results/NAME.json

For CPUs with AVX-512 BF16 and without AMX (DESIGN 5): which of the two is faster decides `fast_bf16_dots`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import result_file

import yakvrt
from yakvrt.cpu import matmul_choice
from yakvrt.cpu.features import host_features
from yakvrt.engine import Engine


def load(model: str, n_prompt: int, threads: int, fast: bool) -> Engine:
    chosen = SimpleNamespace(fast_bf16_dots=fast)
    with mock.patch.object(matmul_choice, "host_features", return_value=chosen):  # asked by recorders
        return yakvrt.load(model, dtype="bf16", ctx_size=n_prompt + 16, threads=threads)


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="bfloat16 dot products against float32 multiply-adds.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--n-prompt", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    features = host_features()
    if not features.avx512_bf16 or features.amx_bf16:
        print("this is for a CPU with AVX-512 BF16 and without AMX")
        return 1
    engines = {fast: load(args.model, args.n_prompt, args.threads, fast) for fast in (True, False)}
    sessions = {fast: engine.session() for fast, engine in engines.items()}
    random = np.random.default_rng(1)
    ids = random.integers(0, engines[True].config.vocab_size, args.n_prompt).tolist()
    logits, seconds = {}, {fast: list[float]() for fast in sessions}
    for rep in range(args.reps + 1):
        for fast, session in sessions.items():
            session.truncate(0)
            began = time.perf_counter()
            logits[fast] = session.prefill(ids).copy()
            if rep:
                seconds[fast].append(round(time.perf_counter() - began, 4))
    result = {
        "bench": "bf16_dots",
        **result_file.facts(),
        "cpu_name": features.cpu_name,
        "model": args.model,
        "n_prompt": args.n_prompt,
        "threads": args.threads,
        "largest_logit_difference": round(float(np.abs(logits[True] - logits[False]).max()), 4),
        "bf16_s": seconds[True],
        "f32_s": seconds[False],
        "ratio": round(
            statistics.median(b / a for a, b in zip(seconds[True], seconds[False], strict=True)), 3
        ),
    }
    for engine in engines.values():
        engine.close()
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
