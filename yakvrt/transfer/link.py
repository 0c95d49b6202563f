"""Models what a link to a GPU makes of gathered rows: arithmetic on a measured gather, nothing that was run.

A link is its rate and its latency, which every transfer pays once (yakvrt.transfer.plan.Link).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from yakvrt.transfer.plan import Link
from yakvrt.transfer.records import MODELLED, TransferRecord

LINE = 64  # bytes that a read of host memory over the link takes at least


def modelled(gather: TransferRecord, link: Link) -> Iterator[TransferRecord]:
    """Three ways of moving the rows of a measured gather over the link.

    `gather+copy`: the host gathers them, one copy takes the block. `copy-rows`: a copy for each row, one
    after the other. `zero-copy`: the GPU reads the rows where they lie, so many at once that the link is
    full, in whole lines of 64 bytes.
    """
    latency_ns = link.latency_us * 1e3
    one_copy_ns = latency_ns + gather.n_bytes / link.gbps
    yield _record(
        gather,
        link,
        "gather+copy",
        "measured gather + latency + bytes / rate",
        tuple(ns + one_copy_ns for ns in gather.samples_ns),
    )
    row_ns = latency_ns + gather.row_bytes / link.gbps
    yield _record(gather, link, "copy-rows", "rows * (latency + row bytes / rate)", (gather.n_rows * row_ns,))
    line_ns = (
        latency_ns + gather.n_rows * lines_per_row(gather.row_bytes, gather.row_offset) * LINE / link.gbps
    )
    yield _record(gather, link, "zero-copy", "latency + rows * lines of 64 bytes / rate", (line_ns,))


def lines_per_row(row_bytes: int, offset: int) -> float:
    """Lines of 64 bytes that a row touches, on average over all rows."""
    starts = [(offset + i * row_bytes) % LINE for i in range(LINE)]  # a pattern of at most 64 rows
    return sum(-(-(start + row_bytes) // LINE) for start in starts) / LINE


def _record(
    gather: TransferRecord, link: Link, test: str, model: str, samples_ns: tuple[float, ...]
) -> TransferRecord:
    return replace(
        gather,
        test=test,
        kind=MODELLED,
        model=model,
        link_gbps=link.gbps,
        link_latency_us=link.latency_us,
        n_loops=0,
        verified_bytes=0,
        samples_ns=samples_ns,
    )
