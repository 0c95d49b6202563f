"""Reorders the rows of Q and K: rope pairs (i, i + D/2) on the hub, side by side in GGUF's llama."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def interleave(rows: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """The hub's order to GGUF's.

    Shapes: (n_heads * D, ...) -> the same.
    Raises: ValueError when the rows are no whole number of pairs for each head.
    """
    halves = rows.reshape(n_heads, 2, _pairs(rows, n_heads), *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def separate(rows: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """GGUF's order to the hub's.

    Shapes: (n_heads * D, ...) -> the same.
    Raises: ValueError when the rows are no whole number of pairs for each head.
    """
    pairs = rows.reshape(n_heads, _pairs(rows, n_heads), 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _pairs(rows: NDArray[Any], n_heads: int) -> int:
    if n_heads < 1 or len(rows) % (2 * n_heads):
        raise ValueError(f"{len(rows)} rows cannot be shared out as pairs among {n_heads} heads")
    return len(rows) // (2 * n_heads)
