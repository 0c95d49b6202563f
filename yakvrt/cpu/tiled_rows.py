"""Exact KV rows of one slot as the CPU lays them: keys in tiles of 16 positions, values in rows."""

from __future__ import annotations

import numpy as np

from ..ops import KvRows, element_type

TILE = 16  # positions in a tile of keys


class TiledRows:
    """backend.SlotRows over views. Shapes: k [Hk, tiles, D, 16], v [Hk, n, D]."""

    key_tile = TILE

    def __init__(self, rows: KvRows, slot: int, n_kv_heads: int, head_dim: int) -> None:
        dtype = element_type(rows.kind)
        self._k = rows.k[slot].view(dtype).reshape(n_kv_heads, -1, head_dim, TILE)
        self._v = rows.v[slot].view(dtype).reshape(n_kv_heads, -1, head_dim)

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        tiles = self._k[:, first // TILE : -(-last // TILE)]
        n_heads, n_tiles, head_dim, _ = tiles.shape
        k = tiles.swapaxes(2, 3).reshape(n_heads, n_tiles * TILE, head_dim)
        skip = first % TILE
        return (
            k[:, skip : skip + last - first].astype(np.float32),
            self._v[:, first:last].astype(np.float32),
        )

    def write(self, first: int, k: np.ndarray, v: np.ndarray) -> None:
        positions = np.arange(first, first + k.shape[1])
        self._k[:, positions // TILE, :, positions % TILE] = k.swapaxes(0, 1)
        self._v[:, first : first + v.shape[1]] = v

    def state(self, n_held: int) -> tuple[np.ndarray, np.ndarray]:
        return self._k[:, : -(-n_held // TILE)], self._v[:, :n_held]
