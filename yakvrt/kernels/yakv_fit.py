"""How far attention's output under YAKV is from the exact one for every part of the tail that may count: what
a prompt's last queries tell about every head.

Let a and A be the sum of weights and of weighted values of all rows that were read, t and T those of the
tail. With a part b of the tail the output is (A + b T) / (a + b t), and o is the exact one. The squared
distance is |R + b S|^2 / (a + b t)^2 with R = A - a o and S = T - t o.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .attend_fragments import LEAST
from .cuda_kernel import CudaKernel, Work
from .merge_partials import MAX_PARTIALS
from .yakv_layout import FIRST_RUN, run_len

TAIL = 1  # the partial result of the tail
STEPS = 32  # the parts tried are 0, 1/32, ..., 1


def tail_errors_ref(exact: np.ndarray, sums: np.ndarray, stats: np.ndarray) -> np.ndarray:
    """Squared distances over the rows of a step, for every head and part.

    Shapes: exact [B, Hq, D], sums [B, P, Hq, D], stats [B, Hq, 2, P] (maxima and weights of the partials) ->
    [Hq, STEPS + 1].
    """
    maxima, weights = (stats[:, :, i].astype(np.float64).swapaxes(1, 2)[..., None] for i in (0, 1))
    factors = np.exp(maxima - maxima.max(axis=1, keepdims=True))
    counted = np.ones((STEPS + 1, *factors.shape)) * factors
    counted[:, :, TAIL] *= np.linspace(0, 1, STEPS + 1)[:, None, None, None]
    out = (counted * sums).sum(axis=2) / (counted * weights).sum(axis=2)  # [parts, B, Hq, D]
    distances: np.ndarray = ((out - exact) ** 2).sum(axis=(1, 3)).T
    return distances


def best_parts(errors: np.ndarray) -> np.ndarray:
    """The part nearest to exact attention. Shapes: [Hq, STEPS + 1] -> [Hq]."""
    parts: np.ndarray = errors.argmin(axis=1) / STEPS
    return parts


def tail_errors_cuda(g: Any, head_dim: int) -> CudaKernel:
    """Adds tail_errors_ref of the partial results of a step to errors; those from `first_tail` on are of the
    tail.

    Shapes: errors float32 [Hq, STEPS + 1], exact float32 [rows, stride], sums and stats as in
    merge_partials_cuda.
    Grid: x, query heads.
    """
    threads, n_warps, steps, least, no_mass = 128, 4, STEPS, LEAST, 1e-30
    n_held = 3 * n_warps

    def kernel(  # type: ignore[no-untyped-def]
        errors, exact, stride, sums, stats, first_tail, n_partials, n_heads, n_rows
    ):
        head, thread, held = g.block(), g.thread(), g.shared_f32(n_held)
        lane, warp = g.int32(thread % 32), g.int32(thread // 32)
        for row in range(g.int32(n_rows[0])):
            unit = g.int64(row) * n_heads + head
            own_sums = g.shifted(sums, unit * n_partials * head_dim)
            own_stats = g.shifted(stats, unit * n_partials * 2)
            largest = g.float32(least)
            for i in range(lane, n_partials, g.int32(32)):
                if own_stats[2 * i + 1] > g.float32(0):
                    largest = max(largest, own_stats[2 * i])
            largest = g.warp_max(largest)
            read, rest = g.float32(0), g.float32(0)
            rr, rs, ss = g.float32(0), g.float32(0), g.float32(0)
            for d in range(thread, g.int32(head_dim), g.int32(threads)):
                wanted = exact[g.int64(row) * stride + head * head_dim + d]
                r, s = g.float32(0), g.float32(0)
                for i in range(g.int32(0), n_partials, g.int32(1)):
                    weight = own_stats[2 * i + 1]
                    if weight > g.float32(0):
                        factor = g.exp2(own_stats[2 * i] - largest)
                        off = factor * (own_sums[i * head_dim + d] - weight * wanted)
                        if i < first_tail:
                            r += off
                        else:
                            s += off
                rr, rs, ss = rr + r * r, rs + r * s, ss + s * s
            for i in range(g.int32(0), n_partials, g.int32(1)):
                weight = own_stats[2 * i + 1]
                if weight > g.float32(0):
                    mass = weight * g.exp2(own_stats[2 * i] - largest)
                    if i < first_tail:
                        read += mass
                    else:
                        rest += mass
            rr, rs, ss = g.warp_sum(rr), g.warp_sum(rs), g.warp_sum(ss)
            g.sync_threads()  # others may still read what the row before left
            if lane == 0:
                held[3 * warp], held[3 * warp + 1], held[3 * warp + 2] = rr, rs, ss
            g.sync_threads()
            if thread <= steps:
                rr, rs, ss = g.float32(0), g.float32(0), g.float32(0)
                for i in range(n_warps):
                    rr, rs, ss = rr + held[3 * i], rs + held[3 * i + 1], ss + held[3 * i + 2]
                part = g.float32(thread) * g.float32(1 / steps)
                mass = max(read + part * rest, g.float32(no_mass))
                distance = rr + part * (g.float32(2) * rs + part * ss)
                errors[head * (steps + 1) + thread] += g.divide(distance, mass * mass)

    return CudaKernel(
        kernel,
        "f32* f32* i32 f32* f32* i32 i32 i32 i64*",
        threads,
        opcodes=("MUFU.EX2",),
        work=Work("partial", 4 * head_dim + 8, 4 * head_dim),
    )


def best_parts_cuda(g: Any) -> CudaKernel:
    """best_parts of the errors of all query heads.

    Shapes: parts float32 [Hq], errors float32 [Hq, STEPS + 1].
    Grid: one block.
    """
    threads, steps = 128, STEPS

    def kernel(parts, errors, n_heads):  # type: ignore[no-untyped-def]
        for head in range(g.thread(), n_heads, g.int32(threads)):
            own = g.shifted(errors, head * (steps + 1))
            least, best = own[0], g.int32(0)
            for i in range(g.int32(1), g.int32(steps + 1), g.int32(1)):
                if own[i] < least:
                    least, best = own[i], i
            parts[head] = g.float32(best) * g.float32(1 / steps)

    return CudaKernel(kernel, "f32* f32* i32", threads, work=Work("head", 4 * STEPS + 8, STEPS))


def tail_errors_cpu(group: int, head_dim: int) -> Any:
    """Adds a step's distances to `errors`. Threads share the heads.

    Args: errors, exact, exact_stride, sums, stats, counts (selected rows, int64 [B, Hk]), n_heads, n_rows*,
    factors (16 floats a thread).
    Shapes: errors float32 [Hq, STEPS + 1]; sums float32 [B, 16, Hq, D], stats float32 [B, Hq, 2, 16], where
    all of the tail counts.
    """
    from ..cpu import vector_ops as v

    run_len_of = v.inline(run_len)
    head_bytes, tail, steps = head_dim * 4, TAIL, STEPS
    least = np.float32(1e-15)  # its square is a normal number

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        errors, exact, exact_stride = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        sums, stats, counts = v.get_i64(args + 24), v.get_i64(args + 32), v.get_i64(args + 40)
        n_heads, n_rows = v.get_i64(args + 48), v.get_i64(v.get_i64(args + 56))
        factors = v.get_i64(args + 64) + thread * 64
        first, last = v.share(n_heads, thread, n_threads, 0)
        for head in range(first, last):
            for row in range(n_rows):
                n_selected = v.get_i64(counts + row * (n_heads // group) * 8)
                run_rows = run_len_of(n_selected)
                n_partials = FIRST_RUN + (n_selected + run_rows - 1) // run_rows
                maxima = stats + (row * n_heads + head) * MAX_PARTIALS * 8
                weights = maxima + MAX_PARTIALS * 4
                largest = v.get_f32(maxima)
                for i in range(1, n_partials):
                    largest = max(largest, v.get_f32(maxima + i * 4))
                read, rest = np.float32(0), np.float32(0)
                for i in range(n_partials):
                    factor = v.scalar_exp(v.get_f32(maxima + i * 4) - largest)
                    v.put_f32(factors + i * 4, factor)
                    if i == tail:
                        rest = factor * v.get_f32(weights + i * 4)
                    else:
                        read += factor * v.get_f32(weights + i * 4)
                # of all mass, which may be anything: the largest may be a guess (yakv_weigh.py)
                inverse = np.float32(1) / max(read + rest, np.float32(1e-30))
                v.store_f32(factors, v.mul(v.load_f32(factors), v.splat(inverse)))
                read, rest = read * inverse, rest * inverse
                own_exact = exact + row * exact_stride + head * head_bytes
                rr, rs, ss = v.zero(), v.zero(), v.zero()
                for j in range(0, head_bytes, 64):
                    wanted, r, s = v.load_f32(own_exact + j), v.zero(), v.zero()
                    for i in range(n_partials):
                        source = sums + ((row * MAX_PARTIALS + i) * n_heads + head) * head_bytes + j
                        weight = v.splat(-v.get_f32(weights + i * 4))
                        off = v.fma(wanted, weight, v.load_f32(source))
                        off = v.mul(off, v.splat(v.get_f32(factors + i * 4)))
                        if i == tail:
                            s = off
                        else:
                            r = v.add(r, off)
                    rr, rs, ss = v.fma(r, r, rr), v.fma(r, s, rs), v.fma(s, s, ss)
                square, product, tail_square = v.hsum(rr), np.float32(2) * v.hsum(rs), v.hsum(ss)
                for step in range(steps + 1):
                    part = np.float32(step) * np.float32(1 / steps)
                    mass = max(read + part * rest, least)
                    distance = (square + part * (product + part * tail_square)) / (mass * mass)
                    cell = errors + (head * (steps + 1) + step) * 4
                    v.put_f32(cell, v.get_f32(cell) + distance)

    return kernel
