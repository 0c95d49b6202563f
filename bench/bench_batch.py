"""Batched decode: tokens per second of several slots against one, in turn, in one process.

    python bench/bench_batch.py --model smollm2-135m --out bench/results/NAME.json

Every slot holds `--depth` tokens. A sample is one step of one slot and one step of every batch size; the
ratio is the median over samples of (rows of the step) * (time of the one-slot step) / (time of the step).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import result_file

import yakvrt


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""

    def counts(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description="Batched decode against one slot, in turn.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--slots", type=counts, default=[2, 3, 4, 6, 8, 16, 32])
    parser.add_argument("--depth", type=int, default=128, help="tokens every slot holds (default 128)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--reps", type=int, default=41)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    most = max(args.slots)
    rows = []
    with yakvrt.load(args.model, ctx_size=args.depth + 16, threads=args.threads, n_slots=most) as engine:
        sessions = [engine.session() for _ in range(most)]
        for session in sessions:
            session.prefill([100 + i % 900 for i in range(args.depth)])
        slots = [session.slot for session in sessions]

        def seconds(n: int) -> float:
            started = time.perf_counter()
            engine.runner.decode(slots[:n], [args.depth] * n, [100] * n)
            return time.perf_counter() - started

        sizes = [1, *args.slots]
        for n in sizes:
            seconds(n)  # records the step and compiles its kernels
        samples = [[seconds(n) for n in sizes] for _ in range(args.reps)]
        for i, n in enumerate(sizes):
            ratio = statistics.median(n * sample[0] / sample[i] for sample in samples)
            rate = n / statistics.median(sample[i] for sample in samples)
            rows.append({"slots": n, "tokens_per_s": round(rate, 1), "ratio": round(ratio, 2)})
            print(f"{n:3d} slots  {rate:8.1f} tok/s  {ratio:5.2f}x one slot", flush=True)
        result = {
            "bench": "batch",
            **result_file.facts(),
            "model": engine.name,
            "threads": engine.n_threads,
            "depth": args.depth,
            "reps": args.reps,
            "rows": rows,
        }
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
