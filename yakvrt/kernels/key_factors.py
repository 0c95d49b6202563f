"""Keys as rows of low rank, K ~ A B, whose few numbers stand for them (LRQK). A leading axis, of query heads,
is not named.
"""

from __future__ import annotations

import numpy as np

RIDGE = 1e-5  # of the mean diagonal: keeps matrices of prompts shorter than the rank invertible in float32


def divide(left: np.ndarray, square: np.ndarray) -> np.ndarray:
    """left times the inverse of a positive matrix. Shapes: [n, r], [r, r] -> float32 [n, r]."""
    wide = square.astype(np.float64)
    rank = wide.shape[-1]
    mean = np.trace(wide, axis1=-2, axis2=-1)[..., None, None] / rank
    inverse = np.linalg.inv(wide + (RIDGE * mean + 1e-30) * np.eye(rank))
    return left @ inverse.astype(np.float32)


def project(k: np.ndarray, b_k: np.ndarray) -> np.ndarray:
    """The proxies of keys that nothing else is known of. Shapes: [n, D], [r, D] -> [n, r]."""
    back = b_k.swapaxes(-1, -2)
    return divide(k @ back, b_k @ back)
