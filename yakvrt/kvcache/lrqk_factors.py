"""Low-rank proxies of queries and keys (LRQK): Q ~ A_Q B_Q and K ~ A_K B_K with Q K^T ~ A_Q A_K^T.

All functions work on a stack of query heads; a leading axis that is not named stands for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INITS = ("topcol", "top", "randn")
RIDGE = 1e-6  # of the mean diagonal: keeps matrices of prompts shorter than the rank invertible


@dataclass(frozen=True, slots=True)
class Factors:
    """Shapes: b_q, b_k float32 [r, D] per head, changed by every step."""

    b_q: np.ndarray
    b_k: np.ndarray

    def project(self, k: np.ndarray) -> np.ndarray:
        """The proxies of keys that nothing else is known of. Shapes: [n, D] -> [n, r]."""
        back = self.b_k.swapaxes(-1, -2)
        return divide(k @ back, self.b_k @ back)

    def step(
        self, q: np.ndarray, k: np.ndarray, keys: np.ndarray, proxies: np.ndarray, iterations: int = 2
    ) -> tuple[np.ndarray, np.ndarray]:
        """The proxies of a new query and key, given resident keys and theirs; then one step of descent on B.

        Shapes: q, k [1, D], keys [m, D], proxies [m, r] -> [1, r], [1, r].
        """
        dot = q @ _turned(k)
        k_hat = self.project(k)
        known = q @ _turned(self.b_q) + (q @ _turned(keys)) @ proxies
        square = self.b_q @ _turned(self.b_q) + _turned(proxies) @ proxies
        for _ in range(iterations):
            q_hat = divide(known + dot * k_hat, square + _turned(k_hat) @ k_hat)
            k_hat = divide(
                k @ _turned(self.b_k) + dot * q_hat, self.b_k @ _turned(self.b_k) + _turned(q_hat) @ q_hat
            )
        self.b_q[...] = _descend(self.b_q, q_hat, q)
        self.b_k[...] = _descend(self.b_k, k_hat, k)
        return q_hat, k_hat


def factorise(
    q: np.ndarray, k: np.ndarray, rank: int, iterations: int, tolerance: float, init: str
) -> tuple[Factors, np.ndarray, np.ndarray]:
    """Alternating least squares. Returns: the factors, A_Q and A_K.

    The loop ends early when the mean square error of Q and K together changes by less than `tolerance`.
    Shapes: q, k float32 [S, D] per head -> A [S, r].
    """
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
    return Factors(_fit(a_q, q), _fit(a_k, k)), a_q, a_k


def divide(left: np.ndarray, square: np.ndarray) -> np.ndarray:
    """left times the inverse of a positive matrix. Shapes: [n, r], [r, r] -> float32 [n, r]."""
    wide = square.astype(np.float64)
    rank = wide.shape[-1]
    mean = np.trace(wide, axis1=-2, axis2=-1)[..., None, None] / rank
    inverse = np.linalg.inv(wide + (RIDGE * mean + 1e-30) * np.eye(rank))
    return left @ inverse.astype(np.float32)


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


def _descend(b: np.ndarray, h: np.ndarray, x: np.ndarray) -> np.ndarray:
    """One step down the gradient of |h b - x|^2, as long as the line allows."""
    slope = _turned(h) @ (h @ b - x)
    length = (slope**2).sum(axis=(-2, -1), keepdims=True)
    along = ((h @ slope) ** 2).sum(axis=(-2, -1), keepdims=True)
    lower: np.ndarray = b - length / (along + np.float32(1e-6)) * slope
    return lower


def _turned(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(-1, -2)
