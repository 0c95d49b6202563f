"""RoPE and its inverse by a table, for methods that keep keys as they are before RoPE."""

from __future__ import annotations

import numpy as np

from .rope import rope_table_ref


class RopeTable:
    """`table`: cosines, then sines of all positions, float32 [positions, D]."""

    def __init__(self, inv_freq: np.ndarray, scale: float, n_positions: int) -> None:
        self.table = rope_table_ref(np.arange(n_positions), inv_freq, scale).astype(np.float32)
        self._scale = scale

    def rotate(self, k: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Shapes: k [..., D], positions [...]."""
        cos, sin = np.split(self.table[positions], 2, axis=-1)
        low, high = np.split(k, 2, axis=-1)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def unrotate(self, k: np.ndarray, first: int = 0) -> np.ndarray:
        """The inverse, for positions first, first + 1, ... Shapes: k [H, n, D]."""
        table = self.table[first : first + k.shape[1]] / np.float32(self._scale**2)
        cos, sin = np.split(table, 2, axis=-1)
        low, high = np.split(k, 2, axis=-1)
        return np.concatenate([low * cos + high * sin, high * cos - low * sin], axis=-1)
