"""How many tokens a step reads from codes: a row of codes spans all KV heads, and comes once for those that
chose it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel

MARKS = 1 << 17  # tokens that are looked at together, a bit each


def paper_fresh_ref(ids: np.ndarray) -> np.ndarray:
    """Of each head's tokens how many no head before it chose. Shapes: int [Hk, k] -> int64 [Hk]."""
    seen, found = set[int](), []
    for of_head in ids.tolist():
        found.append(len({*of_head} - seen))
        seen |= {*of_head}
    return np.array(found, np.int64)


def paper_fresh_cuda(g: Any) -> CudaKernel:
    """paper_fresh_ref of every row.

    Grid: a block for each row. The ids of a head, each below n_units, differ.
    Shapes: n_fresh and counts int64 [B * Hk]; ids int32 [B * Hk][ids_stride], the first counts of each.
    """
    threads, most = 512, MARKS
    n_words = most // 32

    def kernel(n_fresh, ids, ids_stride, counts, n_rows, n_heads, n_units):  # type: ignore[no-untyped-def]
        row, thread = g.block(), g.thread()
        marks, own_marks, total = g.shared_u32(n_words), g.shared_i32(n_words), g.shared_i32(1)
        if row >= n_rows[0]:
            return
        for start in range(g.int32(0), n_units, g.int32(most)):
            n_used = g.int32((min(n_units - start, most) + 31) // 32)
            for word in range(thread, n_used, g.int32(threads)):
                marks[word], own_marks[word] = 0, 0
            for head in range(g.int32(0), n_heads, g.int32(1)):
                segment = g.int64(row) * n_heads + head
                own = g.shifted(ids, segment * ids_stride)
                if thread == 0:
                    total[0] = 0
                g.sync_threads()
                for j in range(thread, g.int32(counts[segment]), g.int32(threads)):
                    unit = g.int32(own[j] - start)
                    if unit >= 0 and unit < most:  # bits of a head differ: their sum has them all
                        g.atomic_add_i32(own_marks, unit // 32, g.int32(1 << unit % 32))
                g.sync_threads()
                found = g.int32(0)
                for word in range(thread, n_used, g.int32(threads)):
                    bits, seen = g.uint32(own_marks[word]), g.uint32(marks[word])
                    found = g.int32(found + g.count_ones(bits | seen) - g.count_ones(seen))
                    marks[word], own_marks[word] = bits | seen, 0
                if found > 0:
                    g.atomic_add_i32(total, 0, found)
                g.sync_threads()
                if thread == 0:
                    before = g.int64(0)
                    if start > 0:
                        before = n_fresh[segment]
                    n_fresh[segment] = before + total[0]

    return CudaKernel(kernel, "i64* i32* i64 i64* i64* i32 i32", threads)
