"""What threads cost each other: a barrier, reading memory and arithmetic by one thread and by all of them.

    python bench/bench_barrier.py --threads 2 --rounds 10 --out bench/results/NAME.json

The figures tell where a virtual machine's CPUs lie for now, which it does not tell itself: cores that share a
cache pass a barrier in a third of the time of others, but share their way to memory, too. A round is all four
figures, some seconds apart from the next.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import result_file
from bench_higgs import Bench, score_tape
from bench_kernels import READ, seconds, tape_of

from yakvrt.cpu.memory import aligned, aligned_array
from yakvrt.cpu.tape import Tape
from yakvrt.cpu.topology import default_threads
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS, SELECTORS

N_OPS = 2000
READ_BYTES = 256 << 20
HEAD_DIM, N_TOKENS = 128, 8192  # of scores whose codes stay in a cache


class Round:
    """The tapes of a round, made once."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        sums, memory = aligned_array((bench.threads, 16), np.float32), aligned(READ_BYTES)
        memory[:] = 1
        self._ops = {barrier: Tape() for barrier in (True, False)}
        for barrier, tape in self._ops.items():
            for _ in range(N_OPS):
                tape.add(READ, memory, 0, sums, barrier=barrier)
            tape.finish(bench.cache.load([READ]))
        self._read = tape_of(bench.cache, READ, memory, READ_BYTES, sums)
        blocks = aligned(N_TOKENS // BLOCK_TOKENS * SELECTORS["2bit"].block_bytes(HEAD_DIM))
        blocks[:] = 0x11
        self._scores = score_tape(bench, blocks, "2bit", HEAD_DIM, 4, N_TOKENS, 64, stride=0)

    def figures(self) -> dict[str, float]:
        def best(tape: Tape, one: bool = False) -> float:
            team = self._bench.one if one else self._bench.team
            return min(seconds(team, tape) for _ in range(self._bench.reps))

        with_barriers, without = (
            statistics.median(seconds(self._bench.team, tape) for _ in range(self._bench.reps))
            for tape in self._ops.values()
        )
        return {
            "barrier_ns": round((with_barriers - without) / N_OPS * 1e9, 1),
            "read_gbps": round(READ_BYTES / best(self._read) / 1e9, 1),
            "read_of_one_gbps": round(READ_BYTES / best(self._read, one=True) / 1e9, 1),
            "arithmetic_ratio": round(best(self._scores, one=True) / best(self._scores), 2),
        }


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="What threads cost each other.")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between rounds (5)")
    parser.add_argument("--reps", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows, measured = [], Round(Bench(args.threads, args.reps))
    for i in range(args.rounds):
        if i:
            time.sleep(args.pause)
        rows.append(measured.figures())
        print(rows[-1], flush=True)
    result = {"bench": "barrier", **result_file.facts(), "threads": args.threads, "rounds": rows}
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
