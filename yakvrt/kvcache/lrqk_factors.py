"""Low-rank proxies of queries and keys (LRQK): Q ~ A_Q B_Q and K ~ A_K B_K with Q K^T ~ A_Q A_K^T.

All functions work on a stack of query heads; a leading axis that is not named stands for them.
"""

from __future__ import annotations

import numpy as np

from ..kernels.key_factors import divide
from ..kernels.page_layout import PromptProxies

INITS = ("topcol", "top", "randn")


def factorise(
    q: np.ndarray, k: np.ndarray, rank: int, iterations: int, tolerance: float, init: str
) -> PromptProxies:
    """Alternating least squares. Returns: B_Q and B_K [2, r, D], A_K [S, r], and the last row of A_Q [1, r].

    The loop ends early when the mean square error of Q and K together changes by less than `tolerance`.
    Shapes: q float32 [S, D] of some heads, k [S, D] of the head that they share.
    """
    k = np.broadcast_to(k, q.shape)
    a_q, a_k = _start(q, k, min(rank, q.shape[-1]), init)
    before = np.inf
    for _ in range(iterations):
        b_q, b_k = _fit(a_q, q), _fit(a_k, k)
        a_q = divide(q @ (_turned(k) @ a_k + _turned(b_q)), _turned(a_k) @ a_k + b_q @ _turned(b_q))
        a_k = divide(k @ (_turned(q) @ a_q + _turned(b_k)), _turned(a_q) @ a_q + b_k @ _turned(b_k))
        error = float(np.mean((q - a_q @ b_q) ** 2) + np.mean((k - a_k @ b_k) ** 2))
        if abs(before - error) < tolerance:
            break
        before = error
    return PromptProxies(np.stack([_fit(a_q, q), _fit(a_k, k)], axis=-3), a_k, a_q[..., -1:, :])


def _fit(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The B of least squares: a B ~ x."""
    return _turned(divide(_turned(x) @ a, _turned(a) @ a))


def _start(q: np.ndarray, k: np.ndarray, rank: int, init: str) -> tuple[np.ndarray, np.ndarray]:
    """The first A: channels of largest sum, the same for both (topcol) or each its own (top), or noise."""
    if init == "randn":
        noise = np.random.default_rng(0).standard_normal((2, *q.shape[:-1], rank)).astype(np.float32)
        return noise[0], noise[1]
    size_q, size_k = np.abs(q).sum(axis=-2), np.abs(k).sum(axis=-2)
    if init == "topcol":
        size_q = size_k = size_q + size_k
    return _columns(q, size_q, rank), _columns(k, size_k, rank)


def _columns(x: np.ndarray, sizes: np.ndarray, n: int) -> np.ndarray:
    """The n columns of largest size."""
    order = np.argsort(-sizes, axis=-1, kind="stable")
    return np.take_along_axis(x, order[..., None, :n], axis=-1)


def _turned(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(-1, -2)
