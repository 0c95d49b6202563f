"""Where a step's time goes, kernel by kernel: a prompt's chunk and a decoded token.

    python bench/bench_profile.py --model smollm2-135m --depth 2048 --out bench/results/NAME.json

The step as it is recorded, with the clock read between its ops; so ops that share no barrier otherwise
get one here. The whole step without clocks is timed in turn, and so is a read of as many bytes as the weights
have, the floor of a decoded token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import result_file
from kernel_clock import KernelClock, shown

import yakvrt
from yakvrt.cpu.memory import aligned, aligned_array
from yakvrt.cpu.tape import Tape
from yakvrt.kernel_build.spec import KernelSpec

READ = KernelSpec("read_bytes", "read_bytes_cpu")


def read_tape(engine: yakvrt.Engine) -> Tape:
    """Reads as many bytes as the weights have."""
    n_bytes = engine.weight_bytes // 4096 * 4096
    memory = aligned(n_bytes)
    memory[:] = 1
    tape = Tape()
    tape.add(READ, memory, n_bytes, aligned_array((engine.n_threads, 16), np.float32))
    tape.finish(engine._backend._cache.load(tape.specs))
    return tape


def profile(engine: yakvrt.Engine, phase: str, capacity: int, reps: int) -> dict[str, Any]:
    """Medians of the whole step and of every kernel's ops."""
    backend = engine._backend
    step, _, _ = engine.runner._step(phase, capacity)
    clock = KernelClock(backend, step)
    read = read_tape(engine)
    read_ms: list[float] = []
    whole_ms: list[float] = []
    for _ in range(reps):
        began = time.perf_counter()
        for part in range(len(step._parts)):
            step.run(part)
        whole_ms.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        backend.team.run(read)
        read_ms.append((time.perf_counter() - began) * 1000)
        clock.run()
    rows = clock.rows()
    clocked = sum(row["ms"] for row in rows)
    total, floor = statistics.median(whole_ms), statistics.median(read_ms)
    of_read = statistics.median(floor_ms / ms for floor_ms, ms in zip(read_ms, whole_ms, strict=True))
    print(
        f"{phase}: {total:.3f} ms, {clocked:.3f} ms with the clock read between ops; "
        f"reading {engine.weight_bytes / 1e6:.0f} MB {floor:.3f} ms, {of_read:.2f} of the step"
    )
    for row in rows:
        print(shown(row))
    return {
        "phase": phase,
        "rows_in_step": capacity,
        "whole_ms": round(total, 4),
        "clocked_ms": round(clocked, 4),
        "read_weights_ms": round(floor, 4),
        "read_of_step": round(of_read, 4),
        "kernels": rows,
    }


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="Where a step's time goes, kernel by kernel.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--depth", type=int, default=0, help="tokens held before the step (0)")
    parser.add_argument("--kv", default="full")
    parser.add_argument("--cache-type", default="f16", choices=("f16", "bf16", "f32"))
    parser.add_argument(
        "--ubatch-size", type=int, default=0, help="tokens of a chunk (the runtime's default)"
    )
    parser.add_argument("--slots", type=int, default=1, help="sequences decoded together (1)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--reps", type=int, default=30)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chunk = {"ubatch_size": args.ubatch_size} if args.ubatch_size else {}
    with yakvrt.load(
        args.model,
        ctx_size=args.depth + 2 * max(args.ubatch_size, 512),
        threads=args.threads,
        cache_type=args.cache_type,
        kv=args.kv,
        n_slots=args.slots,
        **chunk,
    ) as engine:
        n = engine.runner.chunk
        ids = [(7 * i + 11) % engine.config.vocab_size for i in range(args.depth + n)]
        sessions = [engine.session() for _ in range(args.slots)]
        for session in sessions:
            session.prefill(ids)
        phases = [profile(engine, "prefill", n, args.reps)]
        engine.runner.decode(
            [session.slot for session in sessions], [len(ids)] * args.slots, ids[: args.slots]
        )
        phases.append(profile(engine, "decode", args.slots, args.reps))
        for session in sessions:
            session.close()
        result = {
            "bench": "profile",
            **result_file.facts(),
            "model": engine.name,
            "threads": engine.n_threads,
            "kv": args.kv,
            "cache_type": args.cache_type,
            "depth": args.depth,
            "slots": args.slots,
            "phases": phases,
        }
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
