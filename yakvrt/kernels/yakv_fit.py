"""Least squares for the part of YAKV's tail that counts: what a prompt's last queries tell about every head.

Let a and A be the sum of weights and of weighted values of all rows that were read, t and T those of the
tail. With a part b of the tail, attention's output is (A + b T) / (a + b t), and o is the exact one. A query
adds w (A - a o + b (T - t o))^2 with w about (a + t)^-2 to the squared error, whose least is at
b = -sum w <A - a o, T - t o> / sum w |T - t o|^2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .yakv_layout import FIRST_RUN, MAX_PARTIALS, run_len

TAIL = 1  # the partial result of the tail


def tail_terms_ref(exact: np.ndarray, sums: np.ndarray, stats: np.ndarray) -> np.ndarray:
    """Numerator and denominator of the best part of every head, over the rows of a step.

    Shapes: exact [B, Hq, D], sums [B, P, Hq, D], stats [B, Hq, 2, P] (maxima and weights of the partials) ->
    [Hq, 2].
    """
    maxima, weights = (stats[:, :, i].astype(np.float64).swapaxes(1, 2)[..., None] for i in (0, 1))
    factors = np.exp(maxima - maxima.max(axis=1, keepdims=True))
    off = factors * (sums - weights * exact[:, None])  # [B, P, Hq, D]
    tail = off[:, TAIL]
    read = off.sum(axis=1) - tail
    w = (factors * weights).sum(axis=1) ** -2
    terms = [(-w * read * tail).sum(axis=(0, 2)), (w * tail * tail).sum(axis=(0, 2))]
    return np.stack(terms, axis=1)


def best_parts(terms: np.ndarray) -> np.ndarray:
    """Shapes: [Hq, 2] -> [Hq], from 0 to 1; 1 where nothing tells."""
    with np.errstate(divide="ignore", invalid="ignore"):
        parts: np.ndarray = np.where(terms[:, 1] > 0, terms[:, 0] / terms[:, 1], 1)
    return np.clip(parts, 0, 1)


def tail_terms_cpu(group: int, head_dim: int) -> Any:
    """Adds a step's terms to `terms`. Threads share the heads.

    Args: terms, exact, exact_stride, sums, stats, counts (selected rows, int64 [B, Hk]), n_heads, n_rows*,
    factors (16 floats a thread).
    Shapes: terms float32 [Hq, 2]; sums float32 [B, 16, Hq, D], stats float32 [B, Hq, 2, 16], in which all of
    the tail counts.
    """
    from ..cpu import vector_ops as v

    run_len_of = v.inline(run_len)
    head_bytes, tail = head_dim * 4, TAIL

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        terms, exact, exact_stride = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
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
                total = np.float32(0)
                for i in range(n_partials):
                    factor = v.scalar_exp(v.get_f32(maxima + i * 4) - largest)
                    v.put_f32(factors + i * 4, factor)
                    total += factor * v.get_f32(weights + i * 4)
                own_exact = exact + row * exact_stride + head * head_bytes
                both, squares = v.zero(), v.zero()
                for j in range(0, head_bytes, 64):
                    wanted, read, rest = v.load_f32(own_exact + j), v.zero(), v.zero()
                    for i in range(n_partials):
                        source = sums + ((row * MAX_PARTIALS + i) * n_heads + head) * head_bytes + j
                        weight = v.splat(-v.get_f32(weights + i * 4))
                        off = v.mul(
                            v.fma(wanted, weight, v.load_f32(source)), v.splat(v.get_f32(factors + i * 4))
                        )
                        if i == tail:
                            rest = off
                        else:
                            read = v.add(read, off)
                    both, squares = v.fma(read, rest, both), v.fma(rest, rest, squares)
                w, cell = np.float32(1) / (total * total), terms + head * 8
                v.put_f32(cell, v.get_f32(cell) - w * v.hsum(both))
                v.put_f32(cell + 4, v.get_f32(cell + 4) + w * v.hsum(squares))

    return kernel
