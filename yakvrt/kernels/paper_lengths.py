"""What follows from the lengths of slots and the ends of what is indexed there (paper_layout.py)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .cuda_kernel import CudaKernel


class PaperLengths(NamedTuple):
    """For every row of a batch: tokens up to `ends` are indexed, `sizes` can be chosen, `budgets` of them
    are, and `residents` exact ones are read beside them.
    """

    ends: np.ndarray
    sizes: np.ndarray
    budgets: np.ndarray
    residents: np.ndarray


def paper_lengths_ref(
    positions: np.ndarray, wanted: np.ndarray, ends: np.ndarray, n_sinks: int
) -> PaperLengths:
    """For the tokens at these positions, of slots that want so many and have indexed up to these ends, if no
    prompt under way has indexed more.

    Shapes: int64 [B] each.
    """
    ends = np.minimum(ends, positions)
    firsts = np.minimum(n_sinks, ends)
    sizes = ends - firsts
    return PaperLengths(ends, sizes, np.minimum(wanted, sizes), firsts + positions + 1 - ends)


def paper_lengths_cuda(g: Any) -> CudaKernel:
    """paper_lengths_ref, so that a captured step needs nothing from the host but positions.

    Shapes: sizes, budgets and lengths, as sizes, int64 [B, Hk], 0 for rows that the batch lacks; residents
    and found_ends int64 [B]; totals int64 [2], KV heads and query heads of the batch; wanted and ends int64
    [slots].
    Grid: blocks of 128 rows, of all that a batch may have.
    """
    threads = 128

    def kernel(  # type: ignore[no-untyped-def]
        sizes, budgets, lengths, found_ends, residents, totals, wanted, ends, slots, positions, n_rows,
        capacity, n_heads, group, n_sinks,
    ):  # fmt: skip
        row = g.block() * threads + g.thread()
        if row == 0:
            totals[0], totals[1] = n_rows[0] * n_heads, n_rows[0] * n_heads * group
        if row < capacity:
            size, chosen = g.int64(0), g.int64(0)
            if row < n_rows[0]:
                slot = slots[row]
                end = min(g.int64(ends[slot]), g.int64(positions[row]))
                first = min(g.int64(n_sinks), end)
                size = end - first
                chosen = min(g.int64(wanted[slot]), size)
                found_ends[row] = end
                residents[row] = first + positions[row] + 1 - end
            for head in range(n_heads):
                at = row * n_heads + head
                sizes[at], budgets[at], lengths[at] = size, chosen, size

    return CudaKernel(
        kernel,
        "i64* i64* i64* i64* i64* i64* i64* i64* i64* i64* i64* i32 i32 i32 i32",
        threads,
    )
