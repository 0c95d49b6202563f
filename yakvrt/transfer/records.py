"""The records of `yakvrt transfer`: what was timed or modelled, and its table."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yakvrt.record_formats import Table

SQL_TABLE = "yakvrt_transfer"
MEASURED, MODELLED = "measured", "modelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRecord:
    """One test with all its samples.

    `kind` says whether the times were measured or modelled, `model` how. Units: *_ns nanoseconds of one
    operation, of which a sample holds n_loops; *_gbps 10^9 bytes a second of the bytes moved, each counted
    once; cv is the standard deviation over the mean. huge_bytes: how much of the source of pool_bytes the
    system kept in huge pages. verified_bytes: what was compared with numpy's result afterwards.
    """

    build_commit: str
    build_number: int
    cpu_info: str
    gpu_info: str
    backends: str
    system: str
    n_cpus: int
    n_numa_nodes: int
    llc_bytes: int
    memory_bytes: int
    huge_pages: str
    test: str
    kind: str
    model: str
    n_rows: int
    row_bytes: int
    row_order: str
    row_offset: int
    pages: str
    huge_bytes: int
    pool_bytes: int
    n_threads: int
    n_loops: int
    link_gbps: float
    link_latency_us: float
    verified_bytes: int
    test_time: str
    samples_ns: tuple[float, ...]

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.row_bytes

    def fields(self) -> dict[str, Any]:
        """Every field in the order of writing, the statistics after test_time."""
        stored = dataclasses.asdict(self)
        samples_ns = stored.pop("samples_ns")
        return {**stored, **statistics_of(self.n_bytes, samples_ns)}


def statistics_of(n_bytes: int, samples_ns: Sequence[float]) -> dict[str, Any]:
    """What every record says of its samples, the samples last."""
    samples = [float(round(ns, 1)) for ns in samples_ns]
    rates = [n_bytes / ns if ns else 0.0 for ns in samples]
    mean_ns, stddev_ns = statistics.fmean(samples), _stddev(samples)
    return {
        "n_bytes": n_bytes,
        "avg_ns": round(mean_ns, 1),
        "median_ns": round(statistics.median(samples), 1),
        "min_ns": min(samples),
        "stddev_ns": round(stddev_ns, 1),
        "cv": round(stddev_ns / mean_ns, 4) if mean_ns else 0.0,
        "median_gbps": round(statistics.median(rates), 4),
        "stddev_gbps": round(_stddev(rates), 4),
        "samples_ns": samples,
    }


def _stddev(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def transfer_table() -> Table[TransferRecord]:
    """The Markdown table."""
    widths = {
        "test": -12,
        "kind": -8,
        "rows": 6,
        "row": 8,
        "order": -6,
        "offset": 6,
        "pages": -5,
        "threads": 7,
        "time": 10,
        "GB/s": 16,
        "cv": 6,
    }
    return Table(widths, _cells, _footer)


def _cells(record: TransferRecord) -> list[str]:
    fields = record.fields()
    is_gather = bool(record.row_order)
    moves = record.n_bytes > 0
    return [
        record.test,
        record.kind,
        str(record.n_rows) if is_gather else "",
        shown_bytes(record.row_bytes) if moves else "",
        record.row_order,
        str(record.row_offset) if is_gather else "",
        record.pages if moves else "",
        str(record.n_threads),
        shown_time(fields["median_ns"]),
        f"{fields['median_gbps']:.2f} ± {fields['stddev_gbps']:.2f}" if moves else "",
        f"{fields['cv']:.1%}" if record.kind == MEASURED else "",
    ]


def _footer(last: TransferRecord) -> str:
    return f"\nbuild: {last.build_commit} ({last.build_number})\n"


def shown_bytes(n_bytes: int) -> str:
    """A size in the largest unit that keeps it whole: 48 B, 4 KiB, 1 GiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes and n_bytes % size == 0:
            return f"{n_bytes // size} {unit}"
    return f"{n_bytes} B"


def shown_time(ns: float) -> str:
    """A time with four digits."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.4g} {unit}"
    return f"{ns:.4g} ns"
