"""What follows from the lengths of slots whose best pages a step reads (page_layout.py)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .cuda_kernel import CudaKernel
from .page_layout import PageShape, chosen_end


class PageLengths(NamedTuple):
    """For every row of a batch. Of the pages that can be chosen there are `sizes`, and `budgets` of them are.

    Unit j < lengths of what is scored is page, or key, (firsts + j) modulo ends: first those that can be
    chosen. `residents` are the first and last rows, which are always read.
    """

    sizes: np.ndarray
    budgets: np.ndarray
    lengths: np.ndarray
    firsts: np.ndarray
    ends: np.ndarray
    residents: np.ndarray


def page_lengths_ref(
    positions: np.ndarray, wanted: np.ndarray, places: np.ndarray, shape: PageShape
) -> PageLengths:
    """For the tokens at these positions, of slots that want so many pages, and have places for so many.

    Shapes: int64 [B] each.
    """
    found = PageLengths(*np.zeros((6, len(positions)), np.int64))
    for row, position in enumerate(positions.tolist()):
        n, page, first = position + 1, shape.page, shape.n_sinks // shape.page
        size = (chosen_end(n, shape.n_sinks, shape.window, page) - shape.n_sinks) // page
        chosen = min(int(wanted[row]), int(places[row]), size)
        length = size if shape.proxy != "key" or not size else n
        told = size, chosen, length, first, first + size, n - size * page
        for array, value in zip(found, told, strict=True):
            array[row] = value
        if shape.proxy == "key":
            found.ends[row] = n
    return found


def page_lengths_cuda(g: Any) -> CudaKernel:
    """page_lengths_ref, so that a captured step needs nothing from the host but positions.

    Shapes: sizes, budgets and lengths int64 [B, Hk], 0 for rows that the batch lacks; firsts, ends and
    residents int64 [B]; totals int64 [2], KV heads and query heads of the batch; wanted and places int64
    [slots]. keys: keys are scored, of all tokens.
    Grid: blocks of 128 rows, of all that a batch may have.
    """
    threads, end_of = 128, g.inline(chosen_end)

    def kernel(  # type: ignore[no-untyped-def]
        sizes, budgets, lengths, firsts, ends, residents, totals, wanted, places, slots, positions, n_rows,
        capacity, n_heads, group, n_sinks, window, page, keys,
    ):  # fmt: skip
        row = g.block() * threads + g.thread()
        if row == 0:
            totals[0], totals[1] = n_rows[0] * n_heads, n_rows[0] * n_heads * group
        if row < capacity:
            size, chosen, length = g.int64(0), g.int64(0), g.int64(0)
            if row < n_rows[0]:
                n = g.int64(positions[row]) + 1
                size = g.int64(end_of(n, n_sinks, window, page) - n_sinks) // page
                chosen = min(g.int64(wanted[slots[row]]), min(g.int64(places[slots[row]]), size))
                length = size
                firsts[row] = n_sinks // page
                ends[row] = n_sinks // page + size
                if keys:
                    ends[row] = n
                    if size > 0:
                        length = n
                residents[row] = n - size * page
            for head in range(n_heads):
                at = row * n_heads + head
                sizes[at], budgets[at], lengths[at] = size, chosen, length

    return CudaKernel(
        kernel,
        "i64* i64* i64* i64* i64* i64* i64* i64* i64* i64* i64* i64* i32 i32 i32 i32 i32 i32 i32",
        threads,
    )


def page_count_cuda(g: Any) -> CudaKernel:
    """Adds to counters what a step read: rows of all heads, those of them from chosen pages, those of these
    that were on the device already, tokens that came, and the lengths of their histories.

    Shapes: counters int64 [5]; lasts, budgets and n_fresh (pages that came from the host) int64 [B * Hk].
    Grid: one block.
    """
    threads = 32

    def kernel(  # type: ignore[no-untyped-def]
        counters, lasts, budgets, n_fresh, positions, n_rows, n_heads, page
    ):
        lane, n = g.thread(), g.int32(n_rows[0])
        read, chosen, fresh, held = g.int32(0), g.int32(0), g.int32(0), g.int32(0)
        for segment in range(lane, g.int32(n * n_heads), g.int32(32)):
            read = g.int32(read + lasts[segment] + 1)
            chosen = g.int32(chosen + budgets[segment])
            fresh = g.int32(fresh + n_fresh[segment])
        for row in range(lane, n, g.int32(32)):
            held = g.int32(held + positions[row] + 1)
        read, chosen, fresh, held = (
            g.warp_sum(read),
            g.warp_sum(chosen),
            g.warp_sum(fresh),
            g.warp_sum(held),
        )
        if lane == 0:
            counters[0] += read
            counters[1] += g.int64(chosen) * page
            counters[2] += g.int64(chosen - fresh) * page
            counters[3] += n
            counters[4] += held

    return CudaKernel(kernel, "i64* i64* i64* i64* i64* i64* i32 i32", threads)
