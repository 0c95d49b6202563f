"""A weight matrix as the CPU kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.tile_layout import LAYOUTS, ROWS
from .memory import ROW_FLOATS, padded

PIECE_BYTES, N_PIECES = 256, 16  # that tell a matrix from another


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
    def tile_bytes(self) -> int:
        return LAYOUTS[self.format].tile_bytes(self.n_cols)

    @property
    def n_bytes(self) -> int:
        return self.tiles.nbytes

    def read_bytes(self, experts: np.ndarray | None = None) -> int:
        """What a product takes; of experts, of which each pack of rows names one, no more than packs.

        Shapes: experts int64 [packs], as any type.
        """
        n_packs = self.n_experts if experts is None else experts.nbytes // 8
        return self.n_bytes * min(self.n_experts, n_packs) // self.n_experts

    def sample(self) -> bytes:
        """Format and shape, pieces from all over, and the bias."""
        first = np.linspace(0, max(0, self.n_bytes - PIECE_BYTES), N_PIECES).astype(np.int64)
        pieces = b"".join(self.tiles[at : at + PIECE_BYTES].tobytes() for at in first)
        shape = repr((self.format, self.n_rows, self.n_cols, self.n_experts)).encode()
        return shape + pieces + (b"" if self.bias is None else self.bias.tobytes())


def tiled_bytes(format_name: str, n_rows: int, n_cols: int, n_experts: int = 1) -> int:
    """Bytes of a matrix in tiles."""
    n_tiles = padded(n_rows, ROW_FLOATS) // ROWS
    return n_experts * n_tiles * LAYOUTS[format_name].tile_bytes(n_cols)
