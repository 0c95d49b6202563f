"""Repacking GGUF rows into tiles, every weight format, beside a plain copy of the same bytes, on one team.

    python bench/bench_repack.py --threads 2 --out bench/results/NAME.json

Rates are bytes of the GGUF rows a second. `fresh` writes to memory that was never touched, as loading a model
does, so the system's clearing of pages counts; the other columns write to the same memory again and again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import result_file

from gguf_tools.formats import FORMATS
from yakvrt.cpu.kernel_cache import KernelCache
from yakvrt.cpu.memory import aligned
from yakvrt.cpu.tape import Tape
from yakvrt.cpu.team import Team
from yakvrt.cpu.tiled_matrix import tiled_bytes
from yakvrt.cpu.topology import default_threads
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.tile_layout import LAYOUTS, ROWS

N_COLS = 4096
COPY = kernel("copy_bytes", "copy_bytes_cpu")
TARGET_S = 0.3  # for 100 MB


def row_bytes(format_name: str) -> int:
    stored = FORMATS[format_name]
    return N_COLS // stored.block_len * stored.block_bytes


def repack_tape(format_name: str, tiles: np.ndarray, rows: np.ndarray) -> Tape:
    """One matrix, its rows in order."""
    tape = Tape()
    index = np.arange(len(rows))
    bad = np.zeros(1, np.int64)
    spec = kernel("repack", "repack_cpu", format_name)
    tape.add(spec, tiles, rows, index, len(rows) // ROWS, N_COLS, bad, *[0] * 32)
    return tape


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(description="Repacking of every weight format against a plain copy.")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--megabytes", type=int, default=128, help="bytes of every matrix (128 MB)")
    parser.add_argument("--reps", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cache = KernelCache()
    team = Team(args.threads, cache)
    rng = np.random.default_rng(3)
    results = []

    def seconds(make: Callable[[], Tape]) -> float:
        tape = make()
        tape.finish(cache.load(tape.specs))
        started = time.perf_counter()
        team.run(tape)
        return time.perf_counter() - started

    for name in LAYOUTS:
        n_rows = args.megabytes * 1_000_000 // row_bytes(name) // 32 * 32
        rows = rng.integers(0, 256, (n_rows, row_bytes(name)), np.uint8)
        n_bytes = tiled_bytes(name, n_rows, N_COLS)
        tiles = aligned(n_bytes)
        tiles[:] = 0

        def copy(rows: np.ndarray = rows, tiles: np.ndarray = tiles) -> Tape:
            tape = Tape()
            tape.add(COPY, tiles, rows, min(rows.nbytes, tiles.nbytes) // 4096 * 4096)
            return tape

        def repack(name: str = name, rows: np.ndarray = rows, tiles: np.ndarray = tiles) -> Tape:
            return repack_tape(name, tiles, rows)

        def repack_fresh(name: str = name, rows: np.ndarray = rows, n_bytes: int = n_bytes) -> Tape:
            return repack_tape(name, aligned(n_bytes), rows)

        ways = (repack, copy, repack_fresh)
        for way in ways:
            seconds(way)
        samples = [[seconds(way) for way in ways] for _ in range(args.reps)]
        medians = [statistics.median(column) for column in zip(*samples, strict=True)]
        rates = [rows.nbytes / median / 1e6 for median in medians]
        row = {
            "format": name,
            "repack_mbps": round(rates[0]),
            "copy_mbps": round(rates[1]),
            "fresh_mbps": round(rates[2]),
            "s_per_100_mb": round(100 / rates[2], 4),
            "ratio_to_copy": round(statistics.median(b / a for a, b, _ in samples), 3),
        }
        results.append(row)
        print(
            "{format:5} {repack_mbps:6} MB/s, copy {copy_mbps:6}, ratio {ratio_to_copy:.2f}; "
            "fresh memory {fresh_mbps:6} MB/s, {s_per_100_mb:.3f} s for 100 MB".format(**row),
            flush=True,
        )
    team.close()
    result = {"bench": "repack", **result_file.facts(), "threads": args.threads, "rows": results}
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    missed = [row["format"] for row in results if row["s_per_100_mb"] > TARGET_S]
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
