"""A CUDA kernel that draws tokens: top-k, top-p, min-p and temperature as yakvrt/sampler.py has them.

The candidates, a row's largest logits, come from select_topk_cuda.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work

LOG2_E = 1.4426950408889634
CANDIDATES = (64, 256, 1024)


def sample_ref(
    logits: np.ndarray, ids: np.ndarray, temperature: float, top_p: float, min_p: float, uniform: float
) -> int:
    """The token drawn among candidates; `uniform` in [0, 1) says which.

    Shapes: logits [V], ids [k], rising.
    """
    scores = logits[ids].astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    ids, scores = ids[order], scores[order] - scores.max()
    if temperature == 0:
        return int(ids[0])
    shares = np.cumsum(np.exp(scores))
    n = np.searchsorted(shares / shares[-1], top_p, side="left") + 1 if top_p < 1 else len(ids)
    if min_p > 0:
        n = min(n, int((scores >= np.log(min_p)).sum()))
    cumulative = np.cumsum(np.exp(scores[:n] / temperature))
    place = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return int(ids[min(place, n - 1, len(ids) - 1)])


def sample_cuda(g: Any, most: int) -> CudaKernel:
    """Draws a token for every row among up to `most` candidates.

    Grid: a block for each row.
    Shapes: tokens int64 [B], logits float32 [B][logits_stride], ids int32 [B][ids_stride], rising, counts
    int64 [B]; temperatures, top_ps, min_ps and uniforms float32 [B]. Temperature 0 takes the largest logit,
    of equal ones the lowest id.
    Raises: ValueError for another number of candidates.
    """
    if most not in CANDIDATES:
        raise ValueError(f"{most} candidates have no CUDA kernel: use {', '.join(map(str, CANDIDATES))}")
    threads, warps, log2_e, lowest = most, most // 32, LOG2_E, float("-inf")

    @g.inline
    def scan(value, sums, thread):  # type: ignore[no-untyped-def]
        """The sum over this thread and those before it, and over all; the same order of sums in every run."""
        lane, warp = g.int32(thread % 32), g.int32(thread // 32)
        for k in range(5):
            other = g.shuffle_up(value, 1 << k)
            if lane >= 1 << k:
                value += other
        g.sync_threads()
        if lane == 31:
            sums[warp] = value
        g.sync_threads()
        before, total = g.float32(0), g.float32(0)
        for i in range(warps):
            if i < warp:
                before += sums[i]
            total += sums[i]
        return before + value, total

    @g.inline
    def first_of(flag, firsts, thread):  # type: ignore[no-untyped-def]
        """The first thread whose flag is set, or `threads`."""
        votes, warp = g.ballot(flag), g.int32(thread // 32)
        g.sync_threads()
        if thread % 32 == 0:
            own = g.int32(threads)
            if votes != 0:
                own = g.int32(warp * 32 + g.count_ones((votes & (0 - votes)) - 1))
            firsts[warp] = own
        g.sync_threads()
        first = g.int32(threads)
        for i in range(warps):
            first = g.int32(min(first, firsts[i]))
        return first

    def kernel(  # type: ignore[no-untyped-def]
        tokens,
        logits,
        logits_stride,
        ids,
        ids_stride,
        counts,
        temperatures,
        top_ps,
        min_ps,
        uniforms,
        n_rows,
    ):
        row, thread = g.block(), g.thread()
        if row >= n_rows[0]:
            return
        given, order_ids, scores = g.shared_f32(threads), g.shared_i32(threads), g.shared_f32(threads)
        sums, firsts = g.shared_f32(warps), g.shared_i32(warps)
        count = g.int32(min(counts[row], threads))
        score, token = g.float32(lowest), g.int32(0)
        if thread < count:
            token = g.int32(ids[g.int64(row) * ids_stride + thread])
            score = logits[g.int64(row) * logits_stride + token]
        given[thread] = score
        g.sync_threads()
        place = g.int32(0)  # in falling order, equal ones by rising id: ids rise already
        for i in range(g.int32(0), count, g.int32(1)):
            other = given[i]
            if other > score or (other == score and i < thread):
                place = g.int32(place + 1)
        if thread >= count:
            place = thread
        scores[place], order_ids[place] = score, token
        g.sync_threads()
        score, n = (scores[thread] - scores[0]) * g.float32(log2_e), count
        here, temperature = thread < count, temperatures[row]
        share = g.float32(0)
        if here:
            share = g.exp2(score)
        through, total = scan(share, sums, thread)
        if top_ps[row] < g.float32(1):
            reached = here and through >= top_ps[row] * total
            n = g.int32(min(n, first_of(1 if reached else 0, firsts, thread) + 1))
        if min_ps[row] > g.float32(0):
            too_small = here and score < g.log2(min_ps[row])
            n = g.int32(min(n, first_of(1 if too_small else 0, firsts, thread)))
        chosen = g.int32(0)
        if temperature > g.float32(0):
            share = g.float32(0)
            if thread < n:
                share = g.exp2(g.divide(score, temperature))
            through, total = scan(share, sums, thread)
            beyond = thread < n and through > uniforms[row] * total
            chosen = g.int32(max(min(first_of(1 if beyond else 0, firsts, thread), n - 1), 0))
        if thread == 0:
            tokens[row] = order_ids[chosen]

    return CudaKernel(
        kernel,
        "i64* f32* i64 i32* i64 i64* f32* f32* f32* f32* i64*",
        threads,
        opcodes=("MUFU.EX2", "SHFL"),
        work=Work("candidate", 8, 8),
    )
