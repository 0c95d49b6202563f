"""The most likely token of every row of logits, the lowest id of equal ones, and its logit: greedy sampling
on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work


def argmax_ref(logits: np.ndarray) -> np.ndarray:
    """Shapes: logits [B, V] -> ids int64 [B]."""
    return np.argmax(logits, axis=-1)


def argmax_cuda(g: Any) -> CudaKernel:
    """Contiguous rows of `n_tokens` numbers, a multiple of 4.

    Shapes: ids int64 [B], peaks float32 [B], the largest logits: NaN where any is.
    Grid: a block for each row.
    Differs: NaN is never chosen; a row of NaN and -infinity alone gives 0.
    """
    threads = 1024
    warps = threads // 32
    lowest, no_number = float("-inf"), float("nan")

    def kernel(ids, peaks, logits, n_tokens, n_rows):  # type: ignore[no-untyped-def]
        row, thread = g.block(), g.thread()
        if row < n_rows[0]:
            logits = g.shifted(logits, g.int64(row) * n_tokens)
            best, best_id, spoiled = g.float32(lowest), g.int32(n_tokens), g.int32(0)
            for i in range(thread * 4, n_tokens, threads * 4):
                a, b, c, d = g.load_constant_f32x4(logits, i)
                # ids rise, so that only a larger logit replaces the best
                if a > best:
                    best, best_id = a, g.int32(i)
                if b > best:
                    best, best_id = b, g.int32(i + 1)
                if c > best:
                    best, best_id = c, g.int32(i + 2)
                if d > best:
                    best, best_id = d, g.int32(i + 3)
                if a != a or b != b or c != c or d != d:
                    spoiled = g.int32(1)
            bests, ids_of_bests = g.shared_f32(warps), g.shared_i32(warps)
            spoiled_warps = g.shared_i32(warps)
            if g.ballot(spoiled) != 0:
                spoiled = g.int32(1)
            if thread % 32 == 0:
                spoiled_warps[thread // 32] = spoiled
            for round in range(2):  # the lanes of each warp, then the warps
                for step in (16, 8, 4, 2, 1):
                    other, other_id = g.shuffle_xor(best, step), g.int32(g.shuffle_xor(best_id, step))
                    if other > best or (other == best and other_id < best_id):
                        best, best_id = other, other_id
                if round == 0:
                    if thread % 32 == 0:
                        bests[thread // 32] = best
                        ids_of_bests[thread // 32] = best_id
                    g.sync_threads()
                    best, best_id = bests[thread % 32], ids_of_bests[thread % 32]
            if thread == 0:
                ids[row] = best_id if best_id < n_tokens else 0
                for i in range(warps):
                    if spoiled_warps[i] != 0:
                        best = g.float32(no_number)
                peaks[row] = best

    return CudaKernel(
        kernel, "i64* f32* f32* i32 i64*", threads, opcodes=("LDG.E.128",), work=Work("number", 4, 1)
    )
