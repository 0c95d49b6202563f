"""What a run of `yakvrt transfer` leaves for the runtime, plans and bench: section "link" of a GPU, or "host"
of a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yakvrt import tuning

Fields = Mapping[str, Any]
TYPICAL_ROW, TYPICAL_ROWS = 128, 8192  # about what a layer of a step fetches
LEAST_ROWS = 1024  # fewer say little of memory
NEARLY = 0.97  # of the fastest: fewer blocks leave more of the GPU to others
COPIES = ("copy-rows", "copy-batch", "gather+copy")


def keep_rates(records: Sequence[Fields]) -> list[Path]:
    """Writes what the records are enough for, and returns the files. Raises: as tuning.save."""
    if rates := link_rates(records):
        return [tuning.save(records[0]["gpu_info"], "link", rates)]
    if rates := host_rates(records):
        return [tuning.save(records[0]["cpu_info"], "host", rates)]
    return []


def host_rates(records: Sequence[Fields]) -> dict[str, Any] | None:
    """tuning.HostRates and more, of a run without a GPU that gathered about as many and as large rows as a
    layer of a step; None of others.
    """
    gathers = [r for r in records if r["test"] == "gather" and r["kind"] == "measured"]
    usual = [
        r
        for r in _typical(gathers)
        if r["n_rows"] >= LEAST_ROWS and TYPICAL_ROW / 2 <= r["row_bytes"] <= 2 * TYPICAL_ROW
    ]
    if not usual:
        return None
    rates = tuning.HostRates(gather_gbps=_fastest(usual))
    return {**asdict(rates), "measured": records[-1]["test_time"], "build": records[-1]["build_commit"]}


def link_rates(records: Sequence[Fields]) -> dict[str, Any] | None:
    """tuning.LinkRates and more; None where a test that it takes was left out.

    `methods`: for every row size the fastest way of taking the number of rows that is nearest to a step's.
    """
    gathers = _typical([r for r in records if r["test"] == "rows" and r["method"] == "zero-copy"])
    blocks = fewest_blocks(gathers)
    to_device, to_host = (_fastest(_copies(records, way)) for way in ("h2d", "d2h"))
    memory = _fastest(_copies(records, "d2d"))
    copy_us, launch_us = (_latency_us(records, method) for method in ("copy-h2d", "graph"))
    if not (blocks and to_device and to_host and memory and copy_us and launch_us):
        return None
    methods = fastest_methods(records)
    rates = tuning.LinkRates(
        to_device_gbps=to_device,
        to_host_gbps=to_host,
        gather_gbps=max(rate(r) for r in gathers if r["grid"] == blocks),
        memory_gbps=2 * memory,  # each byte is read and written
        copy_us=copy_us,
        launch_us=launch_us,
        crossover_bytes=crossover_bytes(methods),
        gather_blocks=blocks,
    )
    return {
        **asdict(rates),
        "methods": {str(size): method for size, method in methods.items()},
        "measured": records[-1]["test_time"],
        "build": records[-1]["build_commit"],
    }


def fewest_blocks(gathers: Sequence[Fields]) -> int:
    """That come near the fastest; 0 of no gathers."""
    best = max(map(rate, gathers), default=0.0)
    return min((r["grid"] for r in gathers if rate(r) >= NEARLY * best > 0), default=0)


def rate(record: Fields) -> float:
    """GB/s, the median."""
    return float(record["n_bytes"]) / record["median_ns"] if record["median_ns"] else 0.0


def fastest_methods(records: Sequence[Fields]) -> dict[int, str]:
    """By the bytes of a row, of scattered rows that are aligned and in the first order."""
    rows = [r for r in records if r["test"] == "rows" and r["method"] != "copy-2d"]
    if not rows:
        return {}
    n_rows = _nearest({r["n_rows"] for r in rows}, TYPICAL_ROWS)
    order = rows[0]["row_order"]
    held = [r for r in rows if (r["n_rows"], r["row_order"]) == (n_rows, order) and not r["row_offset"]]
    best = {}
    for size in sorted({r["row_bytes"] for r in held}):
        of_size = [r for r in held if r["row_bytes"] == size]
        best[size] = str(max(of_size, key=rate)["method"])
    return best


def crossover_bytes(methods: Mapping[int, str]) -> float:
    """The row size from which on copies win over the kernel, up to the largest; 0 where they never do."""
    crossover = 0.0
    for size in sorted(methods, reverse=True):
        if methods[size] not in COPIES:
            break
        crossover = float(size)
    return crossover


def _typical(gathers: Sequence[Fields]) -> list[Fields]:
    """Those of the row size and number of rows that are nearest to a step's, aligned, in the first order."""
    if not gathers:
        return []
    size = _nearest({r["row_bytes"] for r in gathers}, TYPICAL_ROW)
    n_rows = _nearest({r["n_rows"] for r in gathers if r["row_bytes"] == size}, TYPICAL_ROWS)
    order = gathers[0]["row_order"]
    return [
        r
        for r in gathers
        if (r["row_bytes"], r["n_rows"], r["row_order"], r["row_offset"]) == (size, n_rows, order, 0)
    ]


def _copies(records: Sequence[Fields], direction: str) -> list[Fields]:
    kinds = ("pinned", "registered-huge", "")
    return [
        r for r in records if r["test"] == "copy" and r.get("direction") == direction and r["memory"] in kinds
    ]


def _fastest(records: Sequence[Fields]) -> float:
    return max(map(rate, records), default=0.0)


def _latency_us(records: Sequence[Fields], method: str) -> float:
    found = [r["median_ns"] for r in records if r["test"] == "latency" and r["method"] == method]
    return float(found[0]) / 1e3 if found else 0.0


def _nearest(values: set[int], wanted: int) -> int:
    """By their ratio; the larger one of two."""
    return min(values, key=lambda value: (max(value, wanted) / min(value, wanted), -value))
