"""What tracing costs while a model runs: the same samples with and without a trace, in turn.

    python bench/bench_trace.py --model smollm2-135m --kv full,yakv --out bench/results/NAME.json

One engine and one session; who goes first changes every turn, and a turn counts when nothing else ran. The
overhead is the median over the turns of traced by untraced time, less one. What is noted becomes a file after
the run: its time is no part of this, and is told apart.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import result_file
from quiet import Meter, wait_for_quiet

import yakvrt
from yakvrt.kvcache.method_label import name_and_args
from yakvrt.session import Session
from yakvrt.trace_file import Tracing

TRIES_PER_TURN = 3


def turns(
    engine: yakvrt.Engine, run: Callable[[], None], reps: int, *, noisy: bool
) -> tuple[list[tuple[float, float]], int, float, float]:
    """Seconds untraced and traced of the turns that count, how many did not, the trace's bytes, and the
    seconds that writing it took.
    """
    kept: list[tuple[float, float]] = []
    rejected = 0
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        with Tracing(str(path)) as tracing, tracing.follow(engine, "samples"):
            log: Any = tracing.log
            run()  # names of stages are looked up once
            for turn in range(reps * TRIES_PER_TURN):
                if not noisy:
                    wait_for_quiet()
                seconds, quiet = [0.0, 0.0], True
                for traced in (turn % 2, 1 - turn % 2):
                    with Meter() as meter:
                        engine.trace(log if traced else None)
                        began = time.perf_counter()
                        run()
                        seconds[traced] = time.perf_counter() - began
                    quiet &= meter.quiet
                if quiet or noisy:
                    kept.append((seconds[0], seconds[1]))
                rejected += not (quiet or noisy)
                if len(kept) == reps:
                    break
            engine.trace(None)
            began = time.perf_counter()
        return kept, rejected, path.stat().st_size, time.perf_counter() - began


def tests_of(
    session: Session, ids: list[int], depth: int, n_prompt: int, n_gen: int
) -> dict[str, Callable[[], None]]:
    """A prompt and a generation, each on top of `depth` tokens."""

    def prompt() -> None:
        session.truncate(depth)
        session.prefill(ids[depth : depth + n_prompt])

    def generation() -> None:
        session.truncate(depth)
        for token in ids[depth : depth + n_gen]:
            session.decode(token)

    return {f"pp{n_prompt}": prompt, f"tg{n_gen}": generation}


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="What tracing costs while a model runs.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kv", default="full", help="KV methods, with parameters as in yakv:slot_cache=2")
    parser.add_argument("--depth", type=int, default=1024, help="tokens held before (1024)")
    parser.add_argument("--n-prompt", type=int, default=256, help="tokens of a prompt (256)")
    parser.add_argument("--n-gen", type=int, default=64, help="tokens of a generation (64)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--reps", type=int, default=15, help="turns that count (15)")
    parser.add_argument("--noisy", action="store_true", help="count every turn, whatever else runs: a trial")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    threads, ctx_size = 0, args.depth + max(args.n_prompt, args.n_gen) + 16
    for label in args.kv.split(","):
        method, kv_args = name_and_args(label)
        with yakvrt.load(
            args.model, ctx_size=ctx_size, threads=args.threads, kv=method, kv_args=kv_args
        ) as engine:
            threads, session = engine.n_threads, engine.session()
            random_ids = random.Random(1234)
            ids = [random_ids.randrange(engine.config.vocab_size) for _ in range(ctx_size)]
            session.prefill(ids[: args.depth])
            for test, run in tests_of(session, ids, args.depth, args.n_prompt, args.n_gen).items():
                kept, rejected, n_bytes, write_s = turns(engine, run, args.reps, noisy=args.noisy)
                if not kept:
                    raise SystemExit("no turn was quiet; stop what else runs on this machine")
                over = [traced / plain - 1 for plain, traced in kept]
                quartiles = statistics.quantiles(over, n=4) if len(over) > 1 else [over[0]] * 3
                rows.append(
                    {
                        "kv_method": label,
                        "test": test,
                        "depth": args.depth,
                        "untraced_ms": round(statistics.median(plain for plain, _ in kept) * 1e3, 2),
                        "traced_ms": round(statistics.median(traced for _, traced in kept) * 1e3, 2),
                        "overhead": round(statistics.median(over), 4),
                        "overhead_middle_half": [round(quartiles[0], 4), round(quartiles[2], 4)],
                        "turns": len(kept),
                        "rejected": rejected,
                        "trace_mb": round(n_bytes / 1e6, 2),
                        "written_in_s": round(write_s, 2),
                    }
                )
                print("{kv_method} {test}: {untraced_ms} ms, overhead {overhead:.2%}".format(**rows[-1]))
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "model", "kv")}
    result = {
        "bench": "trace",
        **result_file.facts(),
        "model": Path(args.model).name,
        **settings,
        "threads": threads,
        "rows": rows,
    }
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
