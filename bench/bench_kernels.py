"""Decode matmul of every weight format against a plain read of the same bytes, in turn, on one team.

    python bench/bench_kernels.py --threads 2 --out bench/results/NAME.json

The matrix is larger than the caches (third levels reach 480 MiB), so a ratio of 1 means that nothing but
memory costs time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import result_file

from yakvrt.cpu.kernel_cache import KernelCache
from yakvrt.cpu.memory import aligned, aligned_array
from yakvrt.cpu.tape import Tape
from yakvrt.cpu.team import Team
from yakvrt.cpu.tiled_matrix import tiled_bytes
from yakvrt.cpu.topology import default_threads
from yakvrt.kernel_build.spec import KernelSpec, kernel
from yakvrt.kernels.tile_layout import LAYOUTS, ROWS

N_COLS = 4096
READ = KernelSpec("read_bytes", "read_bytes_cpu")


def tape_of(cache: KernelCache, spec: KernelSpec, *arguments: object) -> Tape:
    tape = Tape()
    tape.add(spec, *arguments)  # type: ignore[arg-type]
    tape.finish(cache.load([spec]))
    return tape


def seconds(team: Team, tape: Tape) -> float:
    started = time.perf_counter()
    team.run(tape)
    return time.perf_counter() - started


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="Decode matmul of every weight format against a plain read.")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--megabytes", type=int, default=1024, help="bytes of every matrix (1024 MB)")
    parser.add_argument("--reps", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cache = KernelCache()
    team = Team(args.threads, cache)
    rows = []
    for name, layout in LAYOUTS.items():
        n_tiles = args.megabytes * 1_000_000 // layout.tile_bytes(N_COLS) // 2 * 2
        n_bytes = tiled_bytes(name, n_tiles * ROWS, N_COLS)
        tiles = aligned(n_bytes, zeroed=True)
        tiles[:] = 1
        codes, scales = aligned(4 * N_COLS, zeroed=True), aligned_array((N_COLS // 32 * 4,), np.float32)
        scales[:] = 1
        out, sums = (
            aligned_array((1, n_tiles * ROWS), np.float32),
            aligned_array((args.threads, 16), np.float32),
        )
        count = np.ones(1, np.int64)
        matmul = tape_of(
            cache,
            kernel("matmul", "matmul_cpu", name, 1),
            *(out, out.strides[0], tiles, n_tiles, N_COLS, codes, scales, count),
        )
        read = tape_of(cache, READ, tiles, n_bytes // 4096 * 4096, sums)
        seconds(team, matmul)
        pairs = [(seconds(team, matmul), seconds(team, read)) for _ in range(args.reps)]
        ratio = statistics.median(b / a for a, b in pairs)
        rates = [n_bytes / statistics.median(side) / 1e9 for side in zip(*pairs, strict=True)]
        rows.append(
            {
                "format": name,
                "bits_per_weight": round(8 * n_bytes / (n_tiles * ROWS * N_COLS), 3),
                "matmul_gbps": round(rates[0], 1),
                "read_gbps": round(rates[1], 1),
                "ratio": round(ratio, 3),
            }
        )
        line = (
            "{format:5} {bits_per_weight:6.2f} bit  {matmul_gbps:5.1f} of {read_gbps:5.1f} GB/s  {ratio:.2f}"
        )
        print(line.format(**rows[-1]))
    team.close()
    result = {"bench": "kernels", **result_file.facts(), "threads": args.threads, "rows": rows}
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
