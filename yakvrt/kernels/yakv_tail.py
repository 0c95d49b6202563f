"""The tail of a YAKV decode step: the estimated mass of the rows that were not selected times the mean value
of their block. And the weights that both it and the ranking rest on.

A step takes one exponential of every logit, relative to one logit of its run of blocks (yakv_weigh.py). What
that one itself weighs (a run weight) makes the rest of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .merge_partials import MAX_PARTIALS
from .yakv_layout import BLOCKS_PER_RUN

LEAST = -80.0  # exponents are cut off here, of weights and of run weights: as numbers they are still normal
RUN_HEADER = 64  # bytes before the run weights of a query: the largest reference, the sum of exponentials


def tail_ref(
    logits: np.ndarray, lse: np.ndarray, ids: np.ndarray, values: np.ndarray, share: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The probability of a share of the tokens that are not among the ids, times the mean values of their
    blocks of 64, and that probability itself; float64.

    Shapes: logits [G, n], lse [G], values [n / 64, D], share a number or [G, 1] -> [G, D], [G].
    """
    p = np.exp(logits.astype(np.float64) - lse.astype(np.float64)[:, None])
    p[:, ids] = 0
    masses = share * p.reshape(len(p), len(values), 64).sum(axis=2)
    return masses @ values.astype(np.float64), masses.sum(axis=1)


def run_weights_bytes(n_runs: int) -> int:
    """Bytes of the run weights of one query."""
    return RUN_HEADER + -(-n_runs // 16) * 64


def make_run_weights(group: int) -> Any:
    """An inline run_weights(out, stats, run_stats, n_runs) -> bytes between queries.

    Shapes: out [G][largest reference, of ring or runs, sum of exponentials relative to it, ...][n_runs] from
    RUN_HEADER on: what a weight in a run is multiplied by to be relative to that reference.
    """
    from ..cpu import vector_ops as v

    least, bytes_of, header = np.float32(LEAST), v.inline(run_weights_bytes), RUN_HEADER

    @v.inline
    def run_weights(out: int, stats: int, run_stats: int, n_runs: int) -> int:
        stride = bytes_of(n_runs)
        for g in range(group):
            cells = stats + g * MAX_PARTIALS * 8
            ring_max, target = v.get_f32(cells), out + g * stride
            largest = ring_max
            for run in range(n_runs):
                largest = max(largest, v.get_f32(run_stats + (run * group + g) * 8))
            total = v.get_f32(cells + MAX_PARTIALS * 4) * v.scalar_exp(ring_max - largest)
            for run in range(n_runs):
                cell = run_stats + (run * group + g) * 8
                weight = v.scalar_exp(max(v.get_f32(cell) - largest, least))
                v.put_f32(target + header + run * 4, weight)
                total += weight * v.get_f32(cell + 4)
            v.put_f32(target, largest)
            v.put_f32(target + 4, total)
        return stride

    return run_weights


def make_logits_of(group: int) -> Any:
    """An inline logits_of(out, spare, stride, ids, n, weights, weights_stride, run_stats): the logits that
    scoring found for n rows of a head, back from their weights; what lies behind the last is undefined. A
    logit that was cut off becomes less than LEAST below the reference of its run, and stays nothing.

    Shapes: out and spare float32 [G][n padded to 16], rows `stride` bytes apart; others as in yakv_score_cpu.
    """
    from ..cpu import vector_ops as v

    run_tokens = BLOCKS_PER_RUN * 64
    cut, tiny = np.float32(-np.exp(LEAST) * 1.01), np.float32(1.2e-38)  # 1.01: weights are rounded

    @v.inline
    def logits_of(
        out: int,
        spare: int,
        stride: int,
        ids: int,
        n: int,
        weights: int,
        weights_stride: int,
        run_stats: int,
    ) -> None:
        for i in range(n):
            token = v.get_i32(ids + i * 4)
            weight, reference = weights + token * 2, run_stats + token // run_tokens * group * 8
            for g in range(group):
                v.put_f32(out + g * stride + i * 4, v.get_bf16(weight + g * weights_stride))
                v.put_f32(spare + g * stride + i * 4, v.get_f32(reference + g * 8))
        for g in range(group):
            for j in range(g * stride, g * stride + n * 4, 64):
                weight = v.vmax(v.add(v.load_f32(out + j), v.splat(cut)), v.splat(tiny))
                v.store_f32(out + j, v.add(v.vlog(weight), v.load_f32(spare + j)))

    return logits_of


def make_add_tail(group: int, head_dim: int) -> Any:
    """An inline add_tail(state, values, parts, weights, weights_stride, block_sums, sums_stride, runs,
    runs_stride, n_blocks, ids, count): the softmax state of a part of the rows that are not among the ids.

    Takes the selected rows off the block sums, which then are masses. `runs`: as make_run_weights leaves
    them; parts float32 [G]; other shapes as in yakv_score_cpu, of one head.
    """
    from ..cpu import vector_ops as v
    from ..cpu.attention_tiles import PREFETCH_AHEAD, make_weighted_sum

    add_values, header = make_weighted_sum(group, head_dim, "f16", prefetch=True), RUN_HEADER
    value_bytes = head_dim * 2

    @v.inline
    def add_tail(
        state: int,
        values: int,
        parts: int,
        weights: int,
        weights_stride: int,
        block_sums: int,
        sums_stride: int,
        runs: int,
        runs_stride: int,
        n_blocks: int,
        ids: int,
        count: int,
    ) -> None:
        for line in range(0, min(n_blocks * value_bytes, PREFETCH_AHEAD), 64):
            v.prefetch(values + line)
        for i in range(count):
            token = v.get_i32(ids + i * 4)
            cell, weight = block_sums + token // 64 * 4, weights + token * 2
            for g in range(group):
                rest = v.get_f32(cell + g * sums_stride) - v.get_bf16(weight + g * weights_stride)
                v.put_f32(cell + g * sums_stride, rest)
        for g in range(group):
            own, total, part = runs + g * runs_stride, v.zero(), v.get_f32(parts + g * 4)
            for run in range((n_blocks + BLOCKS_PER_RUN - 1) // BLOCKS_PER_RUN):
                cells = block_sums + g * sums_stride + run * 64
                factor = v.splat(v.get_f32(own + header + run * 4) * part)
                mass = v.vmax(v.mul(v.load_f32(cells), factor), v.zero())  # rounding may leave less than none
                v.store_f32(cells, mass)
                total = v.add(total, mass)
            running = state + group * head_dim * 4 + g * 8
            v.put_f32(running, v.get_f32(own))
            v.put_f32(running + 4, v.hsum(total))
        add_values(values, n_blocks, block_sums, sums_stride, state)

    return add_tail
