"""Rows of any width as HIGGS codes in plain numpy: one head's, or a token's of all heads side by side.

A row is rotated, divided by its root mean square, which becomes its float16 scale, and cut into sub-vectors,
each replaced by the number of the nearest grid point. A width that has no rotation is padded with zeros to a
power of two, and the codes of all padded coordinates are kept: the rotated energy lies in them too.

Source: HIGGS, arXiv 2411.17525.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..higgs_grids import load_grid
from .chosen_rows import BLOCK_PRODUCTS
from .higgs_layout import LARGEST_SCALE
from .rotate import rotation, rotation_factors

ENCODE_BLOCK = 1024  # rows that are rotated together


def coded_width(width: int) -> int:
    """The coordinates of a row that are coded: the width, or the next power of two."""
    try:
        rotation_factors(width)
        return width
    except ValueError:
        power = 16
        while power < width:
            power *= 2
        return power


@dataclass(frozen=True, slots=True)
class HiggsCode:
    """One grid and one rotation. Shapes: grid [points, d], turn [coded width, width]: y = turn @ u."""

    grid: np.ndarray
    turn: np.ndarray

    @classmethod
    def of(cls, grid: str, width: int) -> HiggsCode:
        return cls(load_grid(grid), np.ascontiguousarray(rotation(coded_width(width))[:, :width]))

    @property
    def n_codes(self) -> int:
        """Bytes of codes in a row."""
        n: int = len(self.turn) // self.grid.shape[1]
        return n

    def encode(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shapes: rows [n, width] -> codes uint8 [n, n_codes], scales float16 [n]."""
        codes = np.empty((len(rows), self.n_codes), np.uint8)
        scales = np.empty(len(rows), np.float16)
        for first in range(0, len(rows), ENCODE_BLOCK):
            y = rows[first : first + ENCODE_BLOCK] @ self.turn.T
            scale = np.sqrt(np.mean(y**2, axis=1))
            y /= np.where(scale > 0, scale, 1)[:, None]
            codes[first : first + len(y)] = nearest(y, self.grid)
            scales[first : first + len(y)] = np.minimum(scale, LARGEST_SCALE)
        return codes, scales

    def decode(self, codes: np.ndarray, scales: np.ndarray, columns: slice) -> np.ndarray:
        """Some columns of rows; each of them takes all codes of the row.

        Shapes: codes [n, n_codes], scales [n] -> float32 [n, columns].
        """
        turn = self.turn[:, columns]
        out = np.empty((len(codes), turn.shape[1]), np.float32)
        block = max(1, BLOCK_PRODUCTS // turn.size)
        for first in range(0, len(codes), block):
            part = slice(first, first + block)
            np.matmul(self.points(codes[part]), turn, out=out[part])
        out *= scales.astype(np.float32)[:, None]
        return out

    def points(self, codes: np.ndarray) -> np.ndarray:
        """Rotated rows without their scales. Shapes: codes [n, n_codes] -> [n, coded width]."""
        # no code is out of range, and "clip" is faster than to look for one
        points = np.take(self.grid, codes, axis=0, mode="clip")
        return points.reshape(len(codes), len(self.turn))


def nearest(y: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The number of the grid point nearest to every sub-vector: that of the largest y.g - |g|^2 / 2.

    Shapes: y [n, m * d], grid [points, d] -> uint8 [n, m].
    """
    parts = y.reshape(-1, grid.shape[1])
    half_squares = 0.5 * (grid**2).sum(axis=1)
    codes = np.empty(len(parts), np.uint8)
    block = BLOCK_PRODUCTS // grid.size
    for first in range(0, len(parts), block):
        scores = parts[first : first + block] @ grid.T
        scores -= half_squares
        codes[first : first + block] = scores.argmax(axis=1)
    return codes.reshape(len(y), y.shape[1] // grid.shape[1])


def side_by_side(rows: np.ndarray) -> np.ndarray:
    """The heads of a token as one row. Shapes: [H, n, D] -> [n, H * D]."""
    return rows.swapaxes(0, 1).reshape(rows.shape[1], -1)
