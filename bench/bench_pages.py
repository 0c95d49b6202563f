"""Reading weights from small pages, from huge pages and from a mapped file, in turn, on one team.

    python bench/bench_pages.py --threads 2 --out bench/results/NAME.json

A plain read and the decode matmul of Q4_K, over memory larger than the caches. The file is in the page cache.
"""

from __future__ import annotations

import argparse
import json
import mmap
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import result_file

from yakvrt.cpu.kernel_cache import KernelCache
from yakvrt.cpu.memory import aligned, aligned_array
from yakvrt.cpu.tape import Tape
from yakvrt.cpu.team import Team
from yakvrt.cpu.tile_memory import TileMemory
from yakvrt.cpu.topology import default_threads
from yakvrt.kernel_build.spec import KernelSpec, kernel
from yakvrt.kernels.tile_layout import LAYOUTS, ROWS

FORMAT, N_COLS = "Q4_K", 1536
READ = KernelSpec("read_bytes", "read_bytes_cpu")


def small_pages(n_bytes: int) -> np.ndarray:
    mapping = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(mapping, np.uint8)


def main() -> int:
    """Runs it; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(
        description="Small pages, huge pages and a mapped file under the weights."
    )
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--reps", type=int, default=25)
    parser.add_argument("--directory", type=Path, help="where the file is made (the system's temporary one)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    n_tiles = args.megabytes * 1_000_000 // LAYOUTS[FORMAT].tile_bytes(N_COLS) // 64 * 64
    n_bytes = n_tiles * LAYOUTS[FORMAT].tile_bytes(N_COLS) // 4096 * 4096
    memory = {"small": small_pages(n_bytes), "huge": TileMemory.empty(n_bytes).data}
    for array in memory.values():
        array[:] = 1
    with tempfile.TemporaryFile(dir=args.directory) as file:
        memory["huge"].tofile(file)
        file.flush()
        mapping = mmap.mmap(file.fileno(), n_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
    memory["file"] = np.frombuffer(mapping, np.uint8)

    cache = KernelCache()
    team = Team(args.threads, cache)
    sums = aligned_array((args.threads, 16), np.float32)
    codes, scales = aligned(4 * N_COLS, zeroed=True), aligned_array((N_COLS // 32 * 4,), np.float32)
    scales[:] = 1
    out, count = aligned_array((1, n_tiles * ROWS), np.float32), np.ones(1, np.int64)
    rows = []
    for name in ("read", "matmul"):
        tapes = {}
        for kind, array in memory.items():
            tapes[kind] = tape = Tape()
            if name == "read":
                tape.add(READ, array, n_bytes, sums)
            else:
                arguments = (out, out.strides[0], array, n_tiles, N_COLS, codes, scales, count)
                tape.add(kernel("matmul", "matmul_cpu", FORMAT, 1), *arguments)
            tape.finish(cache.load(tape.specs))
        seconds: dict[str, list[float]] = {kind: [] for kind in tapes}
        for _ in range(args.reps + 1):
            for kind, tape in tapes.items():
                began = time.perf_counter()
                team.run(tape)
                seconds[kind].append(time.perf_counter() - began)
        row: dict[str, object] = {"test": name}
        for kind, taken in seconds.items():
            row[f"{kind}_gbps"] = round(n_bytes / statistics.median(taken[1:]) / 1e9, 2)
        for kind in ("small", "file"):
            pairs = zip(seconds[kind][1:], seconds["huge"][1:], strict=True)
            row[f"huge_over_{kind}"] = round(statistics.median(a / b for a, b in pairs), 3)
        rows.append(row)
        print(row)
    team.close()
    result = {"bench": "pages", **result_file.facts(), "threads": args.threads, "rows": rows}
    if args.out:
        result_file.write(args.out, result)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
