"""Scores of yakv-paper as its CUDA kernels have them."""

from __future__ import annotations

import numpy as np

from yakvrt.cpu.coded_rows import CodedRows
from yakvrt.kernels.higgs_layout import rounded_grid


def dots_of_bytes(rows: CodedRows, layer: int, q: np.ndarray, first: int, last: int) -> np.ndarray:
    """CodedRows.dots of queries and a grid that are bytes (kernels/higgs_score.py)."""
    code, places = rows._code, slice(first, last)
    turned = q @ code.turn.T.astype(np.float64)
    step = np.abs(turned).max(axis=2, keepdims=True) / 127
    points = rounded_grid(code.grid)[rows._codes[layer, :, places]].reshape(len(q), last - first, -1)
    found = (np.rint(turned / step) * step) @ points.swapaxes(1, 2)
    scaled: np.ndarray = found * rows._scales[layer, :, None, places].astype(np.float64)
    return scaled.astype(np.float32)
