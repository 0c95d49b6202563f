"""Proxies of low rank of a new query and its key, fitted to the keys that rest on the device."""

from __future__ import annotations

import numpy as np

from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.factor_descend import factor_descend_ref
from yakvrt.kernels.factor_resident import factor_resident_ref
from yakvrt.kernels.factor_solve import ITERATIONS, factor_solve_ref

from .arrays import bf16_words, count, normal, poisoned, sample, stored
from .attention import NEVER_USED
from .case import Case, Launch, Sized, compare, sized, untouched


def factor_resident(
    head_dim: int,
    kind: str,
    rank: int,
    filled: list[int],
    positions: list[int],
    ring_len: int,
    sharing: int = 2,
) -> Case:
    """Of two query heads of each KV head or one: places of a cache that are filled, from the first on, of two
    more; slots in reverse; a row too many. Rows and proxies that are not resident are no numbers.
    """
    n, n_kv_heads, width = len(filled), 2, -(-rank // 8) * 8
    n_heads, most_places, n_tokens = n_kv_heads * sharing, max(filled) + 2, max(positions) + 1
    slots, n_places = np.array([*range(n, 0, -1), 99], np.int64), np.full(n + 1, most_places + 9, np.int64)
    recalled = np.full((n + 1, n_heads, most_places), -1, np.int32)
    cached, cache = stored(normal(n + 1, n_heads, most_places, head_dim), kind)
    in_ring, ring = stored(normal(n + 1, n_kv_heads, ring_len, head_dim), kind)
    known, words = bf16_words(normal(n + 1, n_heads, n_tokens, width))
    unused = np.ones((n + 1, n_heads, n_tokens), bool)
    rng = np.random.default_rng(rank)
    for row, slot in enumerate(slots[:-1]):
        past = np.arange(max(0, positions[row] + 1 - ring_len), positions[row])
        unused[slot][:, past] = False
        unwritten = np.setdiff1d(np.arange(ring_len), past % ring_len)
        ring.view(np.uint32)[slot][:, unwritten] = NEVER_USED
        cache.view(np.uint32)[slot][:, filled[row] :] = NEVER_USED
        for head in range(n_heads):
            ids = rng.permutation(max(positions[row] + 1 - ring_len, 0))[: filled[row]]
            recalled[slot, head, : filled[row]] = ids
            unused[slot, head, ids] = False
    words[unused] = NEVER_USED
    q, basis = normal(n + 1, n_heads * head_dim + 4), normal(n + 1, n_heads, 2, rank, head_dim)
    basis[:, :, 1] = np.nan
    found, square = poisoned(n + 1, n_heads, rank), poisoned(n + 1, n_heads, rank, rank)
    launch = Launch(
        kernel("factor_resident", "factor_resident_cuda", head_dim, kind),
        ((n + 1) * n_heads, 1),
        [found, square],
        (
            *(found, square, q, q.shape[1], basis, recalled, most_places, n_places),
            *(cache, most_places * head_dim, ring, n_kv_heads * ring_len * head_dim, ring_len * head_dim),
            *(ring_len, words, n_tokens * width, width, rank, slots, np.array([*positions, 5], np.int64)),
            *(count(n), n_heads, sharing),
        ),
        sum(filled) * n_heads * head_dim * (4 if kind == "f32" else 2),
        2 * sum(filled) * n_heads * (head_dim + rank * rank + rank),
    )

    def check() -> float:
        untouched("of no row", found[n:])
        untouched("squares of no row", square[n:])
        worst = 0.0
        for at in sample(n * n_heads, 7):
            row, head = divmod(at, n_heads)
            slot, k = slots[row], filled[row]
            past = np.arange(max(0, positions[row] + 1 - ring_len), positions[row])
            keys = [cached[slot, head, :k], in_ring[slot, head // sharing, past % ring_len]]
            ids = np.concatenate([recalled[slot, head, :k], past])
            query = q[row, head * head_dim : (head + 1) * head_dim][None]
            of = query, basis[slot, head, 0], np.concatenate(keys), known[slot, head, ids, :rank]
            expected, of_square = factor_resident_ref(*of)
            size = float(np.abs(expected).max())
            worst = max(worst, compare("known", found[row, head], expected[0], 1e-5, 1e-5 * size))
            size = float(np.abs(of_square).max())
            worst = max(worst, compare("square", square[row, head], of_square, 1e-5, 1e-5 * size))
        return worst

    return Case([launch], check)


def factor_solve(head_dim: int, rank: int, n: int, sharing: int = 2, scale: float = 1.0) -> Case:
    """Slots in reverse; a row too many. scale: of factors and proxies, 0 before there is a prompt."""
    n_kv_heads, width = 2, -(-rank // 8) * 8
    n_heads, slots = n_kv_heads * sharing, np.array([*range(n, 0, -1), 99], np.int64)
    q, k = normal(n + 1, n_heads * head_dim + 4), normal(n + 1, n_kv_heads * head_dim + 8)
    basis, known = normal(n + 1, n_heads, 2, rank, head_dim), normal(n + 1, n_heads, rank)
    basis *= np.float32(scale)
    known *= np.float32(scale)
    basis[:, :, 0] = np.nan
    resident = normal(n + 1, n_heads, 2 * rank, rank, scale=scale)
    square = resident.swapaxes(2, 3) @ resident
    q_hat, k_hat = poisoned(n + 1, n_heads, width), poisoned(n + 1, n_heads, width)
    work = poisoned(n + 1, n_heads, 2, rank, rank)
    launch = Launch(
        kernel("factor_solve", "factor_solve_cuda"),
        ((n + 1) * n_heads, 1),
        [q_hat, k_hat, work],
        (
            *(q_hat, k_hat, width, known, square, q, q.shape[1], k, k.shape[1], basis, work, rank, head_dim),
            *(slots, count(n), n_heads, sharing),
        ),
        n * n_heads * 4 * (rank * rank + rank * head_dim),
        n * n_heads * ((1 + 2 * ITERATIONS) * rank**3 // 3 + 2 * rank * rank * head_dim),
    )

    def check() -> float:
        worst = 0.0
        for name, found in (("query", q_hat), ("key", k_hat)):
            untouched(f"{name} of no row", found[n:])
            compare(f"behind the {name}", found[:n, :, rank:], np.zeros((n, n_heads, width - rank), "f4"))
        for at in sample(n * n_heads, 7):
            row, head = divmod(at, n_heads)
            query = q[row, head * head_dim : (head + 1) * head_dim][None]
            at_key = head // sharing * head_dim
            key = k[row, at_key : at_key + head_dim][None]
            of = known[row, head][None], square[row, head], query, key, basis[slots[row], head, 1]
            for found, expected in zip((q_hat, k_hat), factor_solve_ref(*of), strict=True):
                size = 1e-4 * float(np.abs(expected).max())
                worst = max(worst, compare("proxies", found[row, head, :rank], expected[0], 1e-4, size))
        return worst

    return Case([launch], check)


def factor_descend(head_dim: int, rank: int, n: int, sharing: int = 2) -> Case:
    """Slots in reverse; a row too many."""
    n_kv_heads, width = 2, -(-rank // 8) * 8
    n_heads, slots = n_kv_heads * sharing, np.array([*range(n, 0, -1), 99], np.int64)
    q, k = normal(n + 1, n_heads * head_dim + 4), normal(n + 1, n_kv_heads * head_dim + 8)
    q_hat, k_hat = normal(n + 1, n_heads, width), normal(n + 1, n_heads, width)
    basis = normal(n + 1, n_heads, 2, rank, head_dim)
    before = basis.copy()
    launch = Launch(
        kernel("factor_descend", "factor_descend_cuda"),
        ((n + 1) * n_heads, 2),
        [basis],
        (
            *(basis, q_hat, k_hat, width, q, q.shape[1], k, k.shape[1], rank, head_dim),
            *(slots, count(n), n_heads, sharing),
        ),
        n * n_heads * 2 * rank * head_dim * 12,
        n * n_heads * 2 * rank * head_dim * 4,
    )

    def check() -> float:
        compare("the factors of no row", basis[0], before[0])
        worst = 0.0
        for at in sample(n * n_heads, 7):
            row, head = divmod(at, n_heads)
            at_key = head // sharing * head_dim
            given = q[row, head * head_dim : (head + 1) * head_dim], k[row, at_key : at_key + head_dim]
            for which, (hat, x) in enumerate(zip((q_hat, k_hat), given, strict=True)):
                old, found = (each[slots[row], head, which] for each in (before, basis))
                expected = factor_descend_ref(old, hat[row, head, None, :rank], x[None])
                size = float(np.abs(expected).max())
                worst = max(worst, compare("factors", found, expected, 2e-5, 2e-5 * size))
        return worst

    return Case([launch], check)


def small() -> list[Sized]:
    return [
        sized("keys that proxies are fitted to", factor_resident, 64, "bf16", 4, [2, 0], [9, 3], 4),
        sized("proxies of a query and its key", factor_solve, 16, 4, 2),
        sized("factors that follow", factor_descend, 16, 4, 2),
    ]


def real() -> list[Sized]:
    """32 query heads of 128 numbers, 512 chosen rows and the last 16."""
    sizes = [512] * 8, [32768] * 8, 16, 16
    return [
        sized("keys that proxies of 16 are fitted to, 8 x 32", factor_resident, 128, "bf16", 16, *sizes),
        sized("proxies of 16 of queries and keys, 8 x 32", factor_solve, 128, 16, 8, 16),
        sized("proxies of 32 of queries and keys, 8 x 32", factor_solve, 128, 32, 8, 16),
        sized("factors that follow, 8 x 32", factor_descend, 128, 16, 8, 16),
    ]
