"""Rows of any width as HIGGS codes in plain numpy: one head's, or a token's of all heads side by side.

A row is rotated, divided by its root mean square, which becomes its float16 scale, and cut into sub-vectors,
each replaced by the number of the nearest grid point. A width that has no rotation is padded with zeros to a
power of two, and the codes of all padded coordinates are kept: the rotated energy lies in them too.

Source: HIGGS, arXiv 2411.17525.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..cpu.memory import reserved
from ..higgs_grids import load_grid
from ..kernels.chosen_rows import BLOCK_PRODUCTS
from ..kernels.higgs_layout import LARGEST_SCALE
from ..kernels.rotate import rotation, rotation_factors
from .contract import StateArray, TokenRows

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


class CodedRows:
    """Rows of one slot as codes, all layers: of each head, or with one head the tokens' rows of all heads.

    Memory is taken page by page as rows are written. Bytes: n_codes + 2 per row.
    """

    def __init__(self, code: HiggsCode, n_layers: int, n_heads: int, n_places: int) -> None:
        self._code = code
        self._codes = reserved((n_layers, n_heads, n_places, code.n_codes))
        self._scales = reserved((n_layers, n_heads, n_places * 2)).view(np.float16)

    def write(self, layer: int, first: int, rows: np.ndarray) -> None:
        """Encodes rows at places first, first + 1, ... Shapes: rows [H, n, width]."""
        places = slice(first, first + rows.shape[1])
        for head, of_head in enumerate(rows):
            self._codes[layer, head, places], self._scales[layer, head, places] = self._code.encode(of_head)

    def take(self, layer: int, head: int, places: np.ndarray, columns: slice) -> np.ndarray:
        """Some columns of decoded rows. Shapes: places [n] -> float32 [n, columns]."""
        return self._code.decode(self._codes[layer, head, places], self._scales[layer, head, places], columns)

    def state(self, name: str, first: int, last: int, rows: TokenRows) -> dict[str, StateArray]:
        """Codes and scales at places first to last - 1 of all layers, as they rest, divided so."""
        return {
            f"{name}_codes": StateArray(self._codes[:, :, first:last], rows=rows),
            f"{name}_scales": StateArray(self._scales[:, :, first:last], rows=rows),
        }

    def dots(self, layer: int, q: np.ndarray, first: int, last: int) -> np.ndarray:
        """Dot products of queries with the rows at places first to last - 1, in the rotated domain.

        Shapes: q [H, G, width] -> float32 [H, G, last - first].
        """
        turned = q @ self._code.turn.T
        out = np.empty((*q.shape[:2], last - first), np.float32)
        block = max(64, BLOCK_PRODUCTS // (turned.shape[2] * q.shape[1]))
        for head, queries in enumerate(turned):
            for at in range(first, last, block):
                places = slice(at, min(at + block, last))
                points = self._code.points(self._codes[layer, head, places])
                np.matmul(queries, points.T, out=out[head, :, at - first : places.stop - first])
        out *= self._scales[layer, :, None, first:last].astype(np.float32)
        return out


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
