"""Decode speed beside another busy process, as a part of the quiet speed: yakvrt and llama.cpp, in turn.

    PYTHONPATH=. python bench/bench_busy.py --model smollm2-135m --out bench/results/NAME.json

The other process is a loop of Python at the usual priority, left to the system to place. Every turn times
both sides on the quiet machine, then both beside that process; a turn counts when nothing else ran. Both keep
their threads (one a core by default) all the time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import result_file
from llamacpp import LlamaCpp
from quiet import MAX_OTHER_CPUS, wait_for_quiet
from taking_turns import Sample, Side, in_own_thread

SPIN = "while True: pass"
TRIES_PER_TURN = 3
TARGET = 0.4


@contextlib.contextmanager
def busy_processes(n: int) -> Iterator[None]:
    """n processes that use all the CPU they get."""
    spinning = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(n)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(
        description="Decode beside a busy process, as a part of the quiet speed."
    )
    parser.add_argument("--model", default="smollm2-135m", help="name or path of a GGUF model (smollm2-135m)")
    parser.add_argument("--n-gen", type=int, default=128, help="tokens of a sample (128)")
    parser.add_argument("--depth", type=int, default=16, help="tokens in the context (16)")
    parser.add_argument("--busy", type=int, default=1, help="other processes (1)")
    parser.add_argument("--reps", type=int, default=9, help="turns that count (9)")
    parser.add_argument("--threads", type=int, help="threads of either side (what yakvrt takes)")
    parser.add_argument("--noisy", action="store_true", help="count every turn, whatever else runs: a trial")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import yakvrt
    from yakvrt.hub import resolve

    path = resolve(args.model).weights[0]
    ctx_size = args.depth + args.n_gen + 16

    load = functools.partial(yakvrt.load, str(path), ctx_size=ctx_size, threads=args.threads)
    engine = in_own_thread(load)
    llama = in_own_thread(LlamaCpp, path, ctx_size, engine.n_threads)
    sides = [Side("yakvrt", engine.session()), Side(f"llama.cpp {path.name}", llama)]
    random_ids = random.Random(1234)
    ids = [random_ids.randrange(engine.config.vocab_size) for _ in range(ctx_size)]
    generated = ids[args.depth : args.depth + args.n_gen]
    for side in sides:
        side.go_to(ids[: args.depth])
        side.sample("tg", generated)

    turns: list[dict[str, list[Sample]]] = []
    for turn in range(args.reps * TRIES_PER_TURN):
        if not args.noisy:
            wait_for_quiet()
        order = sides[turn % 2 :] + sides[: turn % 2]
        quiet = {side.name: side.sample("tg", generated) for side in order}
        with busy_processes(args.busy):
            busy = {side.name: side.sample("tg", generated) for side in order}
        limits = [(quiet, MAX_OTHER_CPUS), (busy, args.busy + MAX_OTHER_CPUS)]
        counts = args.noisy or all(s.other_cpus <= most for taken, most in limits for s in taken.values())
        turns.append({side.name: [quiet[side.name], busy[side.name]] for side in sides} if counts else {})
        if sum(map(bool, turns)) == args.reps:
            break
    counted = [turn for turn in turns if turn]
    if not counted:
        raise SystemExit("no turn was quiet; stop what else runs on this machine")
    rows = []
    for side in sides:
        quiet_tps, busy_tps = ([turn[side.name][i].tps for turn in counted] for i in (0, 1))
        kept = [busy / quiet for quiet, busy in zip(quiet_tps, busy_tps, strict=True)]
        rows.append(
            {
                "side": side.name,
                "quiet_tps": round(statistics.median(quiet_tps), 1),
                "busy_tps": round(statistics.median(busy_tps), 1),
                "kept": round(statistics.median(kept), 3),
                "kept_range": [round(min(kept), 3), round(max(kept), 3)],
            }
        )
        print(
            "{quiet_tps:8.1f} tok/s quiet, {busy_tps:8.1f} busy, {kept:.2f} kept  {side}".format(**rows[-1])
        )
    result = {
        "bench": "busy",
        **result_file.facts(),
        "model": path.name,
        "threads": engine.n_threads,
        "busy_processes": args.busy,
        "n_gen": args.n_gen,
        "n_turns_counted": len(counted),
        "n_turns_rejected": len(turns) - len(counted),
        "rows": rows,
    }
    if args.out:
        result_file.write(args.out, result)
    for side in sides:
        side.close()
    in_own_thread(engine.close)
    print(json.dumps(result, ensure_ascii=False))
    return 0 if rows[0]["kept"] >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
