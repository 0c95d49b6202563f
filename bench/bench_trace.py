"""What tracing costs while a model runs: prompts and decode steps with and without a trace, in turn.

    python bench/bench_trace.py --model smollm2-135m --kv full,yakv --out bench/results/NAME.json

One engine and one session. Prompts take turns one by one, and a turn counts when nothing else ran; the
overhead is the median over the turns of traced by untraced time, less one. Decode steps take turns one by one
too, and the overhead is that of the median steps. What is noted becomes a file after the run, whose time is
no part of this.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import result_file
from quiet import Meter, wait_for_quiet

import yakvrt
from yakvrt.kvcache.method_label import name_and_args
from yakvrt.session import Session
from yakvrt.trace_file import Tracing

TRIES_PER_TURN = 3
Seconds = tuple[list[float], list[float]]  # untraced, traced


def seconds(engine: yakvrt.Engine, log: Any, run: Callable[[], object]) -> float:
    engine.trace(log)
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def prompts(
    engine: yakvrt.Engine, log: Any, session: Session, ids: Sequence[int], depth: int, reps: int
) -> Seconds:
    """Of the prompts of quiet turns, behind `depth` tokens."""
    found: Seconds = [], []

    def prompt() -> None:
        session.prefill(ids)

    for turn in range(reps * TRIES_PER_TURN):
        wait_for_quiet()
        pair = [0.0, 0.0]
        with Meter() as meter:
            for traced in (turn % 2, 1 - turn % 2):
                session.truncate(depth)
                pair[traced] = seconds(engine, log if traced else None, prompt)
        if turn and meter.quiet:  # the first looks names of stages up
            for each, taken in zip(found, pair, strict=True):
                each.append(taken)
        if len(found[0]) == reps:
            break
    session.truncate(depth)
    return found


def steps(
    engine: yakvrt.Engine, log: Any, session: Session, ids: Sequence[int], depth: int, reps: int
) -> Seconds:
    """Of decode steps behind `depth` tokens."""
    found: Seconds = [], []
    for turn in range(reps):
        wait_for_quiet()
        session.truncate(depth)
        for i, token in enumerate(ids):
            traced = (i + turn) % 2

            def step(token: int = token) -> None:
                session.decode(token)

            found[traced].append(seconds(engine, log if traced else None, step))
    return found


def row_of(label: str, test: str, depth: int, found: Seconds) -> dict[str, Any]:
    quartiles = [statistics.quantiles(each, n=4) for each in found]
    (_, plain, _), (_, traced, _) = quartiles
    over = traced / plain - 1
    if test == "prompt":
        over = statistics.median(b / a - 1 for a, b in zip(*found, strict=True))
    return {
        "kv_method": label,
        "test": test,
        "depth": depth,
        "untraced_ms": [round(each * 1e3, 3) for each in quartiles[0]],
        "traced_ms": [round(each * 1e3, 3) for each in quartiles[1]],
        "overhead": round(over, 4),
        "n": len(found[0]),
    }


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="What tracing costs while a model runs.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kv", default="full", help="KV methods, with parameters as in yakv:slot_cache=2")
    parser.add_argument("--depth", type=int, default=1024, help="tokens held before (1024)")
    parser.add_argument("--n-prompt", type=int, default=256, help="tokens of a prompt (256)")
    parser.add_argument("--n-gen", type=int, default=100, help="decode steps of a turn (100)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--reps", type=int, default=9, help="turns (9)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    threads, ctx_size = 0, args.depth + max(args.n_prompt, args.n_gen) + 16
    for label in args.kv.split(","):
        method, kv_args = name_and_args(label)
        with (
            yakvrt.load(
                args.model, ctx_size=ctx_size, threads=args.threads, kv=method, kv_args=kv_args
            ) as engine,
            tempfile.TemporaryDirectory() as directory,
        ):
            threads, session = engine.n_threads, engine.session()
            random_ids = random.Random(1234)
            ids = [random_ids.randrange(engine.config.vocab_size) for _ in range(ctx_size)]
            session.prefill(ids[: args.depth])
            path = Path(directory) / "trace.json"
            with Tracing(str(path)) as tracing, tracing.follow(engine, "samples"):
                for test, run, n in (("prompt", prompts, args.n_prompt), ("step", steps, args.n_gen)):
                    asked = ids[args.depth : args.depth + n]
                    found = run(engine, tracing.log, session, asked, args.depth, args.reps)
                    if len(found[0]) < 2:
                        raise SystemExit("no turn was quiet; stop what else runs on this machine")
                    rows.append(row_of(label, test, args.depth, found))
                    print("{kv_method} {test}: {untraced_ms} ms, overhead {overhead:.2%}".format(**rows[-1]))
                engine.trace(None)
            print(f"the trace: {path.stat().st_size / 1e6:.1f} MB")
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
