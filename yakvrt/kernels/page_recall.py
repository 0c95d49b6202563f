"""A CUDA kernel that chooses which pages of a cache give way to wanted ones that it lacks."""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel


def page_recall_cuda(g: Any) -> CudaKernel:
    """Makes `recalled`, the pages that rest in each head's places (-1: none), contain all wanted ids: those
    there already stay where they are, the others replace ids that are not wanted, those of least weight
    first, of equal ones the first; empty places before them. The truth is chosen_rows.replace_missing. Where
    too few places can give way (weights that are no numbers, pages that lie there twice), ids stay out.

    Grid: a block for each segment.
    Shapes: recalled int32, strides of slots and heads; ids int32 [segments][ids_stride], ascending, the first
    budgets of each; weights float32 [segments][weights_stride] of all ids; n_places int64 [slots], in use.
    fresh int32 [segments][most_places]: 1 where an id came. n_fresh and n_filled int64 [segments]. Scratch:
    found int32 [segments][ids_stride], order float32 [segments][most_places], missing and targets as ids.
    """
    threads, wanted_order, empty_order = 256, 3e38, -3e38

    @g.inline
    def place_among(ids, n, wanted):  # type: ignore[no-untyped-def]
        """Where an id is among n ascending ones; -1: nowhere."""
        low, high = g.int32(0), g.int32(n)
        while low < high:
            middle = g.int32((low + high) // 2)
            if ids[middle] < wanted:
                low = g.int32(middle + 1)
            else:
                high = middle
        if low < n and ids[low] == wanted:
            return low
        return g.int32(-1)

    def kernel(  # type: ignore[no-untyped-def]
        recalled, slot_stride, head_stride, n_places, slots, n_rows, n_heads, ids, ids_stride, budgets,
        weights, weights_stride, fresh, most_places, n_fresh, n_filled, found, order, missing, targets,
    ):  # fmt: skip
        segment, thread = g.int64(g.block()), g.thread()
        row = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if row >= n_rows[0]:
            return
        slot, head = slots[row], segment - row * n_heads
        n, k = g.int32(min(n_places[slot], g.int64(most_places))), g.int32(budgets[segment])
        held = g.shifted(recalled, slot * slot_stride + head * head_stride)
        ids, found = g.shifted(ids, segment * ids_stride), g.shifted(found, segment * ids_stride)
        missing, targets = g.shifted(missing, segment * ids_stride), g.shifted(targets, segment * ids_stride)
        fresh, order = g.shifted(fresh, segment * most_places), g.shifted(order, segment * most_places)
        weights = g.shifted(weights, segment * weights_stride)
        counts = g.shared_i32(3)  # ids that are missing, places that can give way, places with a page
        if thread < 3:
            counts[thread] = 0
        for j in range(thread, k, g.int32(threads)):
            found[j] = 0
        g.sync_threads()
        for place in range(thread, n, g.int32(threads)):
            page, key = g.int32(held[place]), g.float32(empty_order)
            if page >= 0:
                at = place_among(ids, k, page)
                key = g.float32(wanted_order)
                if at >= 0:
                    found[at] = 1
                else:
                    key = weights[page]
            order[place], fresh[place] = key, 0
            if key < g.float32(wanted_order):
                g.atomic_add_i32(counts, 1, 1)
        g.sync_threads()
        for j in range(thread, k, g.int32(threads)):
            if found[j] == 0:
                rank = g.int32(j)
                for before in range(j):
                    rank = g.int32(rank - found[before])
                missing[rank] = ids[j]
                g.atomic_add_i32(counts, 0, 1)
        g.sync_threads()
        n_missing = g.int32(min(g.int32(counts[0]), g.int32(counts[1])))
        for place in range(thread, n, g.int32(threads)):
            key, rank = order[place], g.int32(0)
            if key < g.float32(wanted_order):
                for other in range(n):
                    if order[other] < key or (order[other] == key and other < place):
                        rank = g.int32(rank + 1)
                if rank < n_missing:
                    targets[rank] = place
        g.sync_threads()
        for i in range(thread, n_missing, g.int32(threads)):
            held[targets[i]], fresh[targets[i]] = missing[i], 1
        g.sync_threads()
        for place in range(thread, n, g.int32(threads)):
            if held[place] >= 0:
                g.atomic_add_i32(counts, 2, 1)
        g.sync_threads()
        if thread == 0:
            n_fresh[segment], n_filled[segment] = n_missing, counts[2]

    return CudaKernel(
        kernel,
        "i32* i64 i64 i64* i64* i64* i32 i32* i64 i64* f32* i64 i32* i32 i64* i64* i32* f32* i32* i32*",
        threads,
    )
