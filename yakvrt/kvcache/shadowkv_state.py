"""What a slot of ShadowKV holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..cpu.exact_rows import ExactRows
from .low_rank_keys import LowRankKeys


@dataclass(slots=True)
class ShadowPrompt:
    """A layer's state of the tokens before `tail`: chunks that can be chosen, the others exactly. Views.

    Shapes: landmarks [Hk, n, D], numbers [Hk, n] of their chunks, fetched [Hk, places] chunks that `recent`
    holds (-1: none), outliers: rows K and V [Hk, m, D].
    """

    tail: int
    keys: LowRankKeys
    landmarks: np.ndarray
    numbers: np.ndarray
    outliers: tuple[np.ndarray, np.ndarray]
    fetched: np.ndarray


@dataclass(slots=True)
class ShadowSlot:
    """All rows on the host; on the device outliers, fetched chunks and by layer the arrays of ShadowPrompt.

    Shapes: left [L, tokens, r], basis [L, Hk, r, D], landmarks [L, Hk, chunks, D], numbers [L, Hk, chunks],
    fetched [L, Hk, places]; n_chunks [L] before the tail (-1: a tail was cut off); prompt [L]: the tokens of
    which the budget is a share.
    """

    rows: ExactRows
    recent: ExactRows
    outliers: ExactRows
    left: np.ndarray
    basis: np.ndarray
    landmarks: np.ndarray
    numbers: np.ndarray
    fetched: np.ndarray
    n_chunks: np.ndarray
    prompt: np.ndarray
