"""A weight matrix as the CPU kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.tile_layout import LAYOUTS, ROWS
from .memory import ROW_FLOATS, padded


@dataclass(frozen=True, slots=True)
class TiledMatrix:
    """A weight matrix in tiles, or `n_experts` of equal shape one after the other.

    Shapes: tiles uint8 [n_experts * n_tiles * tile bytes]; bias float32 [padded rows].
    """

    format: str
    n_rows: int
    n_cols: int
    n_experts: int
    tiles: np.ndarray
    bias: np.ndarray | None = None

    @property
    def n_tiles(self) -> int:
        """Tiles of one expert; even, since kernels take them in pairs."""
        return padded(self.n_rows, ROW_FLOATS) // ROWS

    @property
    def n_bytes(self) -> int:
        return self.tiles.nbytes


def tiled_bytes(format_name: str, n_rows: int, n_cols: int, n_experts: int = 1) -> int:
    """Bytes of a matrix in tiles."""
    n_tiles = padded(n_rows, ROW_FLOATS) // ROWS
    return n_experts * n_tiles * LAYOUTS[format_name].tile_bytes(n_cols)
