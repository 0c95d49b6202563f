"""Tokens/s against the number of threads, beside the read bandwidth of as many, and a model of where it ends.

    python bench/bench_threads.py --model smollm2-135m --plot bench/results/NAME --out bench/results/NAME.json

Every count from 1 to --most is asked of yakvrt as -t would; above the CPUs of the machine it runs as many as
there are, and the row says so. A pass goes through all counts, so that a drift of the machine meets them all.

The model of a step:  time(n) = max(bytes / bandwidth(n), work / n) + barrier * (n - 1)
bytes and bandwidth are measured; work (of one thread, s) and barrier (s for every further thread) are fitted.
--plot writes NAME.png and NAME.svg (pip install "yakvrt[plot]").
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import result_file
from quiet import Meter, settle, wait_for_quiet
from threads_plot import plot

N_PROMPT = 512
READ_BYTES = 256 << 20


@dataclass(slots=True)
class Count:
    """What was measured with `asked` threads, of which `threads` ran; noisy samples apart."""

    asked: int
    threads: int = 0
    tps: dict[str, list[float]] = field(default_factory=lambda: {"tg": [], "pp": []})
    noisy_tps: dict[str, list[float]] = field(default_factory=lambda: {"tg": [], "pp": []})
    read_gbps: list[float] = field(default_factory=list)

    def median(self, test: str) -> float:
        return statistics.median(self.tps[test] or self.noisy_tps[test])

    def row(self, n_cpus: int) -> dict[str, Any]:
        return {
            "threads_asked": self.asked,
            "threads": self.threads,
            "oversubscribed": self.asked > n_cpus,
            "tg_tps": round(self.median("tg"), 2),
            "pp_tps": round(self.median("pp"), 1),
            "read_gbps": round(statistics.median(self.read_gbps), 2),
            "n_quiet": {test: len(samples) for test, samples in self.tps.items()},
            "n_noisy": {test: len(samples) for test, samples in self.noisy_tps.items()},
        }


def fit(bytes_read: float, bandwidth: np.ndarray, n: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """(work, barrier) of the least squared relative error; both at least 0."""
    best = (np.inf, 0.0, 0.0)
    for work in np.linspace(0, 1.2 * float((seconds * n).max()), 4001):
        floor = np.maximum(bytes_read / bandwidth, work / n)
        slope = (n - 1) / seconds
        barrier = max(0.0, float(slope @ (1 - floor / seconds)) / max(float(slope @ slope), 1e-30))
        error = float((((floor + barrier * (n - 1)) / seconds - 1) ** 2).sum())
        best = min(best, (error, float(work), barrier))
    return best[1], best[2]


def bytes_of_a_step(model: str) -> int:
    """Bytes of weights that decoding one token reads: all but the table of embeddings, of which one row."""
    from yakvrt.cpu.tile_store import TileStore, tile_bytes
    from yakvrt.model_source import open_model
    from yakvrt.weight_shapes import target_matrices, tensor_shapes

    with open_model(model, offline=True) as source:
        total = tile_bytes(target_matrices(source.config, source.tensors, "auto", TileStore.layouts))
        if source.config.tied:
            return total
        shape = dict(tensor_shapes(source.config))["token_embd.weight"]
        table = source.tensors["token_embd.weight"]
        return total - table.read().nbytes * shape[0] // len(table.read())


def read_bandwidth(n_threads: int) -> float:
    """GB/s of a plain read of memory larger than the caches."""
    from yakvrt.cpu.kernel_cache import KernelCache
    from yakvrt.cpu.tape import Tape
    from yakvrt.cpu.team import Team
    from yakvrt.cpu.tile_memory import TileMemory
    from yakvrt.kernel_build.spec import KernelSpec

    cache = KernelCache()
    team, tape = Team(n_threads, cache), Tape()
    memory, sums = TileMemory.empty(READ_BYTES).data, np.zeros((n_threads, 32), np.float32)
    memory[:] = 1
    tape.add(KernelSpec("read_bytes", "read_bytes_cpu"), memory, READ_BYTES, sums)
    tape.finish(cache.load(tape.specs))
    seconds = []
    for _ in range(9):
        began = time.perf_counter()
        team.run(tape)
        seconds.append(time.perf_counter() - began)
    team.close()
    return READ_BYTES / statistics.median(seconds[1:]) / 1e9


def measure(count: Count, model: str, args: argparse.Namespace, ids: list[int]) -> None:
    """Loads the model with that many threads and adds samples."""
    import yakvrt

    with yakvrt.load(model, ctx_size=16 + N_PROMPT + args.n_gen, threads=count.asked) as engine:
        count.threads = engine.n_threads
        count.read_gbps.append(read_bandwidth(engine.n_threads))
        session = engine.session()
        session.prefill(ids[:16])
        for sample in range(-1, args.reps):
            for test in ("tg", "pp"):
                settle()
                session.truncate(16 if test == "tg" else 0)
                with Meter() as meter:
                    if test == "tg":
                        for token in ids[: args.n_gen]:
                            session.decode(token)
                    else:
                        session.prefill(ids[:N_PROMPT])
                n_tokens = args.n_gen if test == "tg" else N_PROMPT
                if sample >= 0:  # the first of each warms up
                    (count.tps if meter.quiet else count.noisy_tps)[test].append(n_tokens / meter.wall_s)


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="Tokens/s against threads, with a model of what limits it.")
    parser.add_argument("--model", default="smollm2-135m", help="name or path of a model (smollm2-135m)")
    parser.add_argument("--most", type=int, default=16, help="counts of 1 to this (16)")
    parser.add_argument("--n-gen", type=int, default=64, help="tokens of a decode sample (64)")
    parser.add_argument("--reps", type=int, default=3, help="samples of each count in a pass (3)")
    parser.add_argument("--passes", type=int, default=3, help="passes through all counts (3)")
    parser.add_argument("--noisy", action="store_true", help="do not wait for a quiet machine: a trial")
    parser.add_argument("--plot", type=Path, metavar="NAME", help="writes NAME.png and NAME.svg")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cpus = os.sched_getaffinity(0)
    ids = [random.Random(1234).randrange(1000) for _ in range(N_PROMPT)]
    counts = [Count(n) for n in range(1, args.most + 1)]
    for turn in range(args.passes):
        for count in counts[:: -1 if turn % 2 else 1]:
            if not args.noisy:
                wait_for_quiet()
            with ThreadPoolExecutor(1, initializer=os.sched_setaffinity, initargs=(0, cpus)) as thread:
                thread.submit(measure, count, args.model, args, ids).result()
    rows = [count.row(len(cpus)) for count in counts]
    for row in rows:
        mark = "  (more than the CPUs)" if row["oversubscribed"] else ""
        speeds = "{tg_tps:8.1f} decode, {pp_tps:8.1f} prefill tok/s, {read_gbps:6.1f} GB/s".format(**row)
        print(f"{row['threads_asked']:3} threads: {speeds}{mark}")

    n_bytes = bytes_of_a_step(args.model)
    held = [row for row in rows if not row["oversubscribed"]]
    n, bandwidth = (np.array([row[key] for row in held], float) for key in ("threads", "read_gbps"))
    models: dict[str, dict[str, Any]] = {}
    for test, tokens in (("tg", 1), ("pp", N_PROMPT)):
        seconds = np.array([tokens / row[f"{test}_tps"] for row in held])
        work, barrier = fit(n_bytes, 1e9 * bandwidth, n, seconds)
        fitted = np.maximum(n_bytes / (1e9 * bandwidth), work / n) + barrier * (n - 1)
        models[test] = {
            "bytes": n_bytes,
            "work_ms": round(1e3 * work, 4),
            "barrier_ms": round(1e3 * barrier, 5),
            "modelled_tps": [round(float(x), 2) for x in tokens / fitted],
            "bound": [
                "memory" if n_bytes / (1e9 * b) > work / k else "work"
                for b, k in zip(bandwidth, n, strict=True)
            ],
        }
        print(
            f"{test}: time(n) = max({n_bytes / 1e6:.1f} MB / bandwidth(n), {1e3 * work:.3f} ms / n) "
            f"+ {1e6 * barrier:.1f} us * (n - 1); limits {models[test]['bound']}"
        )
    result = {"bench": "threads", **result_file.facts(), "model": Path(args.model).name, "n_cpus": len(cpus)}
    result |= {
        "n_prompt": N_PROMPT,
        "n_gen": args.n_gen,
        "passes": args.passes,
        "rows": rows,
        "models": models,
    }
    if args.out:
        result_file.write(args.out, result)
    if args.plot:
        plot(result, args.plot)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
