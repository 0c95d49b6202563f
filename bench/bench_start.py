"""Whole-process start: first run ever (kernels compile), warm runs to the first token, peak memory.

    python bench/bench_start.py --model smollm2-135m --reps 7 --out bench/results/NAME.json

Each sample is a process of its own, timed from outside: interpreter, imports, loading, repacking, prefill of
a short chat prompt, one token, shutdown. The first run has an empty kernel cache; the model file is there.
Warm runs take turns with runs that map the repacked weights (--tile-cache).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import result_file

PROMPT = "What is the capital of France?"


def run(model: str, n_tokens: int, environment: dict[str, str], *flags: str) -> dict[str, Any]:
    """One process; seconds from outside, its own time to first token, its peak memory."""
    command = [sys.executable, "-m", "yakvrt.generate", "--model", model, "-p", PROMPT]
    command += ["-n", str(n_tokens), "--temp", "0", "--json", "--offline", *flags]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
        out.seek(0)
        answer = json.load(out)
    return {
        "wall_s": round(seconds, 3),
        "ttft_ms": round(answer["timings"]["ttft_ms"], 1),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
        "kv_mb": round(answer["kv"]["bytes"] / 2**20, 1),
    }


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="First run, warm start and peak memory of whole processes.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--reps", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from yakvrt.cache_directory import cache_directory
    from yakvrt.hub import resolve

    model_mb = sum(path.stat().st_size for path in resolve(args.model).weights) / 2**20
    with tempfile.TemporaryDirectory() as empty:
        (Path(empty) / "models").symlink_to(cache_directory() / "models")
        first = run(args.model, 1, {**os.environ, "YAKVRT_CACHE": empty})
    warm, mapped = [], []
    run(args.model, 1, dict(os.environ), "--tile-cache")  # writes it
    for _ in range(args.reps):  # in turn
        warm.append(run(args.model, 1, dict(os.environ)))
        mapped.append(run(args.model, 1, dict(os.environ), "--tile-cache"))
    median, median_mapped = (
        {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
        for samples in (warm, mapped)
    )
    print(f"first run {first['wall_s']} s; warm {median['wall_s']} s, of it prefill {median['ttft_ms']} ms")
    ratio = statistics.median(a["wall_s"] / b["wall_s"] for a, b in zip(warm, mapped, strict=True))
    print(f"with --tile-cache {median_mapped['wall_s']} s, {ratio:.2f} times as fast (median of pairs)")
    print(f"peak memory {median['peak_mb']} MB beside a model file of {model_mb:.1f} MB")
    result = {"bench": "start", **result_file.facts(), "model": args.model, "model_mb": round(model_mb, 1)}
    result |= {"first_run": first, "warm_median": median, "warm": warm}
    result |= {
        "tile_cache_median": median_mapped,
        "tile_cache": mapped,
        "tile_cache_speedup": round(ratio, 3),
    }
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
