"""What follows from the lengths of slots whose best pages a step reads (page_layout.py)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .cuda_kernel import CudaKernel
from .page_layout import PageShape, chosen_end


class PageLengths(NamedTuple):
    """For every row of a batch. Of the pages that can be chosen there are `sizes`, and `budgets` of them are.

    Unit j < lengths of what is scored is page, or key, (firsts + j) modulo ends: first those that can be
    chosen. Attention reads lasts + 1 rows, the resident ones first.
    """

    sizes: np.ndarray
    budgets: np.ndarray
    lengths: np.ndarray
    firsts: np.ndarray
    ends: np.ndarray
    lasts: np.ndarray


def page_lengths_ref(positions: np.ndarray, wanted: np.ndarray, shape: PageShape) -> PageLengths:
    """For the tokens at these positions, of slots that want so many pages. Shapes: int64 [B] each."""
    found = PageLengths(*np.zeros((6, len(positions)), np.int64))
    for row, position in enumerate(positions.tolist()):
        n, page, first = position + 1, shape.page, shape.n_sinks // shape.page
        size = (chosen_end(n, shape.n_sinks, shape.window, page) - shape.n_sinks) // page
        chosen = min(int(wanted[row]), size)
        length = size if shape.boxes or not size else n
        lasts = n - (size - chosen) * page - 1
        for array, value in zip(found, (size, chosen, length, first, first + size, lasts), strict=True):
            array[row] = value
        if not shape.boxes:
            found.ends[row] = n
    return found


def page_lengths_cuda(g: Any) -> CudaKernel:
    """page_lengths_ref, so that a captured step needs nothing from the host but positions.

    Shapes: sizes, budgets and lengths int64 [B, Hk], 0 for rows that the batch lacks; firsts, ends and lasts
    int64 [B]; totals int64 [2], KV heads and query heads of the batch; wanted int64 [slots]. To counters,
    int64 [4], it adds the rows of all heads that attention reads, those of them from chosen pages, rows of
    the batch, and their tokens. keys: keys are scored, of all tokens.
    Grid: one block.
    """
    threads, end_of = 128, g.inline(chosen_end)

    def kernel(  # type: ignore[no-untyped-def]
        sizes, budgets, lengths, firsts, ends, lasts, totals, counters, wanted, slots, positions, n_rows,
        capacity, n_heads, group, n_sinks, window, page, keys,
    ):  # fmt: skip
        thread = g.thread()
        for row in range(thread, capacity, g.int32(threads)):
            size, chosen, length = g.int64(0), g.int64(0), g.int64(0)
            if row < n_rows[0]:
                n = g.int64(positions[row]) + 1
                size = g.int64(end_of(n, n_sinks, window, page) - n_sinks) // page
                chosen = min(g.int64(wanted[slots[row]]), size)
                length = size
                firsts[row] = n_sinks // page
                ends[row] = n_sinks // page + size
                if keys:
                    ends[row] = n
                    if size > 0:
                        length = n
                lasts[row] = n - (size - chosen) * page - 1
            for head in range(n_heads):
                at = row * n_heads + head
                sizes[at], budgets[at], lengths[at] = size, chosen, length
        g.sync_threads()
        if thread == 0:
            read, fetched, held = g.int64(0), g.int64(0), g.int64(0)
            for row in range(n_rows[0]):
                read += lasts[row] + 1
                fetched += budgets[row * n_heads] * page
                held += positions[row] + 1
            counters[0] += read * n_heads
            counters[1] += fetched * n_heads
            counters[2] += n_rows[0]
            counters[3] += held
            totals[0], totals[1] = n_rows[0] * n_heads, n_rows[0] * n_heads * group

    return CudaKernel(
        kernel,
        "i64* i64* i64* i64* i64* i64* i64* i64* i64* i64* i64* i64* i32 i32 i32 i32 i32 i32 i32",
        threads,
    )
