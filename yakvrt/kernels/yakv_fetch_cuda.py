"""CUDA kernels of the device cache of host rows (see yakv_fetch.py): which rows are resident, and where.

A linked list would have to be walked; here the places of a head lie in an array in the order of their use,
and a step rewrites it: what neither was hit nor is replaced, then the hits, then the places filled anew.

Directory of a head, all zero while it is empty, in int32; node p + 1 stands for place p:

    [place] order: nodes from the least to the most recently used
    [place] room for the next order
    [place] owners: the indexed row that lies there + 1, or 0
    [indexed row] nodes: where it lies, or 0
"""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel, Work
from .yakv_layout import MOST_PLACES

THREADS = 512


def directory_words(n_places: int, n_rows: int) -> int:
    """Words of the directory of a head with that many indexed rows."""
    return 3 * n_places + n_rows


def _make_directory(g: Any) -> tuple[Any, Any, Any]:
    """Inline functions: link(order, n_places, thread), is_marked(marks, place), and
    rank(flag, other_flag, sums, thread) -> how many threads before this one have their flags set, and how
    many of all threads, for both flags.
    """
    warps = THREADS // 32

    @g.inline
    def link(order, n_places, thread):  # type: ignore[no-untyped-def]
        """The places in their own order, where the directory is empty."""
        first = g.int32(order[0])
        g.sync_threads()
        if first == 0:
            for place in range(thread, n_places, g.int32(THREADS)):
                order[place] = place + 1
        g.sync_threads()

    @g.inline
    def is_marked(marks, place):  # type: ignore[no-untyped-def]
        return g.uint32(marks[place // 32]) >> g.uint32(place % 32) & 1

    @g.inline
    def rank(flag, other_flag, sums, thread):  # type: ignore[no-untyped-def]
        lane, warp = g.int32(thread % 32), g.int32(thread // 32)
        below = g.uint32((1 << lane) - 1)
        votes, other_votes = g.ballot(flag), g.ballot(other_flag)
        g.sync_threads()  # others may still read the sums of the call before
        if lane == 0:
            sums[warp] = g.int32(g.count_ones(votes) | g.count_ones(other_votes) << 16)
        g.sync_threads()
        own, before = g.int32(0), g.int32(0)
        if lane < warps:
            own = g.int32(sums[lane])
        if lane < warp:
            before = own
        own, before = g.int32(g.warp_sum(own)), g.int32(g.warp_sum(before))
        mine = g.int32((before & 0xFFFF) + g.count_ones(votes & below))
        other = g.int32((before >> 16) + g.count_ones(other_votes & below))
        return mine, other, g.int32(own & 0xFFFF), g.int32(own >> 16)

    return link, is_marked, rank


def yakv_fetch_cuda(g: Any) -> CudaKernel:
    """Finds places for the selected rows; what is missing is left for yakv_gather_cuda.py, whose copies must
    be done before the places are read.

    Grid: a block for each segment: rows of the batch times KV heads.
    Shapes: directory int32, strides in words; ids, places, missing (rows) and targets (their places) int32
    [segments][ids_stride]; counts and n_missing int64 [segments]. A head has at least as many places as rows
    are selected, and at most MOST_PLACES.
    """
    threads, warps, n_marks = THREADS, THREADS // 32, MOST_PLACES // 32
    link, is_marked, rank = _make_directory(g)

    def kernel(  # type: ignore[no-untyped-def]
        directory,
        slot_stride,
        head_stride,
        n_places,
        slots,
        n_heads,
        ids,
        ids_stride,
        counts,
        places,
        missing,
        targets,
        n_missing,
        n_rows,
    ):
        segment, thread = g.block(), g.thread()
        row_index = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if row_index >= n_rows[0]:
            return
        marks, sums = g.shared_i32(n_marks), g.shared_i32(warps)
        head = segment - row_index * n_heads
        order = g.shifted(directory, slots[row_index] * slot_stride + head * head_stride)
        next_order, owners = g.shifted(order, n_places), g.shifted(order, 2 * g.int64(n_places))
        nodes, own = g.shifted(order, 3 * g.int64(n_places)), g.int64(segment) * ids_stride
        ids, places = g.shifted(ids, own), g.shifted(places, own)
        missing, targets = g.shifted(missing, own), g.shifted(targets, own)
        count = g.int32(counts[segment])
        for i in range(thread, g.int32((n_places + 31) // 32), g.int32(threads)):
            marks[i] = 0
        link(order, n_places, thread)
        hits, misses = g.int32(0), g.int32(0)
        for start in range(g.int32(0), count, g.int32(threads)):
            i, row, node = g.int32(start + thread), g.int32(0), g.int32(0)
            if i < count:
                row = g.int32(ids[i])
                node = g.int32(nodes[row])
            is_hit, is_miss = i < count and node > 0, i < count and node == 0
            hit, miss, n_hits, n_misses = rank(1 if is_hit else 0, 1 if is_miss else 0, sums, thread)
            if is_hit:
                place = g.int32(node - 1)
                places[i] = place
                g.atomic_add_i32(marks, place // 32, g.int32(1 << place % 32))
                next_order[g.int32(n_places - count + hits + hit)] = node
            if is_miss:
                missing[g.int32(misses + miss)] = row
                targets[g.int32(misses + miss)] = i
            hits, misses = g.int32(hits + n_hits), g.int32(misses + n_misses)
        g.sync_threads()
        n_others = g.int32(0)
        for start in range(g.int32(0), n_places, g.int32(threads)):
            i, node, is_other = g.int32(start + thread), g.int32(0), False
            if i < n_places:
                node = g.int32(order[i])
                is_other = is_marked(marks, g.int32(node - 1)) == 0
            other, _, n_found, _ = rank(1 if is_other else 0, 0, sums, thread)
            other = g.int32(n_others + other)
            if is_other:
                if other < misses:
                    place, row = g.int32(node - 1), g.int32(missing[other])
                    owner = g.int32(owners[place])
                    if owner > 0:
                        nodes[g.int32(owner - 1)] = 0
                    owners[place], nodes[row] = g.int32(row + 1), node
                    places[targets[other]] = place
                    targets[other] = place
                    next_order[g.int32(n_places - misses + other)] = node
                else:
                    next_order[g.int32(other - misses)] = node
            n_others = g.int32(n_others + n_found)
        g.sync_threads()
        for i in range(thread, n_places, g.int32(threads)):
            order[i] = next_order[i]
        if thread == 0:
            n_missing[segment] = misses

    return CudaKernel(
        kernel,
        "i32* i64 i64 i32 i64* i32 i32* i64 i64* i32* i32* i32* i64* i64*",
        threads,
        opcodes=("ATOMS", "SHFL"),
        work=Work("place", 16, 4),
    )


def yakv_forget_cuda(g: Any) -> CudaKernel:
    """Indexed rows firsts[b] .. lasts[b] - 1, whose codes are about to change, are not resident any more;
    their places are used first, the last row's before the others.

    Grid: a block for each segment. Shapes: firsts and lasts int64 [B], others as in yakv_fetch_cuda.
    """
    threads, warps, n_marks = THREADS, THREADS // 32, MOST_PLACES // 32
    link, is_marked, rank = _make_directory(g)

    def kernel(  # type: ignore[no-untyped-def]
        directory, slot_stride, head_stride, n_places, slots, n_heads, firsts, lasts, n_rows
    ):
        segment, thread = g.block(), g.thread()
        row_index = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if row_index >= n_rows[0]:
            return
        first, last = g.int32(firsts[row_index]), g.int32(lasts[row_index])
        if first >= last:
            return
        marks, sums = g.shared_i32(n_marks), g.shared_i32(warps)
        head = segment - row_index * n_heads
        order = g.shifted(directory, slots[row_index] * slot_stride + head * head_stride)
        next_order, owners = g.shifted(order, n_places), g.shifted(order, 2 * g.int64(n_places))
        nodes = g.shifted(order, 3 * g.int64(n_places))
        for i in range(thread, g.int32((n_places + 31) // 32), g.int32(threads)):
            marks[i] = 0
        link(order, n_places, thread)
        # last row first: a row's place goes in front of those of the rows before it
        n_gone = g.int32(0)
        for start in range(first, last, g.int32(threads)):
            row, node = g.int32(last - 1 - (start - first) - thread), g.int32(0)
            if row >= first:
                node = g.int32(nodes[row])
            gone, _, n_found, _ = rank(1 if node > 0 else 0, 0, sums, thread)
            if node > 0:
                place = g.int32(node - 1)
                nodes[row], owners[place] = 0, 0
                g.atomic_add_i32(marks, place // 32, g.int32(1 << place % 32))
                next_order[g.int32(n_gone + gone)] = node
            n_gone = g.int32(n_gone + n_found)
        g.sync_threads()
        n_others = n_gone
        for start in range(g.int32(0), n_places, g.int32(threads)):
            i, node, is_other = g.int32(start + thread), g.int32(0), False
            if i < n_places:
                node = g.int32(order[i])
                is_other = is_marked(marks, g.int32(node - 1)) == 0
            other, _, n_found, _ = rank(1 if is_other else 0, 0, sums, thread)
            if is_other:
                next_order[g.int32(n_others + other)] = node
            n_others = g.int32(n_others + n_found)
        g.sync_threads()
        for i in range(thread, n_places, g.int32(threads)):
            order[i] = next_order[i]

    return CudaKernel(
        kernel,
        "i32* i64 i64 i32 i64* i32 i64* i64* i64*",
        threads,
        opcodes=("ATOMS", "SHFL"),
        work=Work("place", 16, 4),
    )


def yakv_count_cuda(g: Any) -> CudaKernel:
    """Adds a step to a layer's counters: selected rows of all heads, how many of them were resident, tokens.

    Grid: one block. Shapes: counters int64 [3]; counts and n_missing int64 [rows of the batch * Hk]. With
    `cached` 0 no row was resident, and n_missing is not read.
    """
    threads, warps = 256, 8
    n_held = 2 * warps

    def kernel(counters, counts, n_missing, cached, n_heads, n_rows):  # type: ignore[no-untyped-def]
        thread, held, n = g.thread(), g.shared_i32(n_held), g.int32(n_rows[0] * n_heads)
        read, hits = g.int32(0), g.int32(0)
        for i in range(thread, n, g.int32(threads)):
            read += g.int32(counts[i])
            if cached > 0:
                hits += g.int32(counts[i] - n_missing[i])
        read, hits = g.int32(g.warp_sum(read)), g.int32(g.warp_sum(hits))
        if thread % 32 == 0:
            held[thread // 32], held[warps + thread // 32] = read, hits
        g.sync_threads()
        if thread == 0:
            for i in range(1, warps):
                read, hits = g.int32(read + held[i]), g.int32(hits + held[warps + i])
            counters[0] += read
            counters[1] += hits
            counters[2] += n_rows[0]

    return CudaKernel(kernel, "i64* i64* i64* i32 i32 i64*", threads, work=Work("segment", 16, 2))
