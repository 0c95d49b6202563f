"""Exact rows of one layer and one prompt, where the model attends while the prompt is taken in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ops import ELEMENT_BYTES, KvRows
from .contract import KvSetting

if TYPE_CHECKING:
    from ..config import ModelConfig

TILE = 16  # positions in a tile of keys


def element_type(kind: str) -> np.dtype[Any]:
    """The NumPy type of a number format of exact rows."""
    if kind == "bf16":
        import ml_dtypes

        wide: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return wide
    return np.dtype({"f16": np.float16, "f32": np.float32}[kind])


def staging_bytes(config: ModelConfig, kind: str, n_tokens: int) -> int:
    """Bytes: 2 * Hk * D * element size per token, tokens rounded up to tiles of 16."""
    padded = -(-n_tokens // TILE) * TILE
    return 2 * config.n_kv_heads * config.head_dim * ELEMENT_BYTES[kind] * padded


def row_views(rows: KvRows, slot: int, n_kv_heads: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of a slot of one layer, as they rest. Shapes: k [Hk, tiles, D, 16], v [Hk, n, D]."""
    dtype = element_type(rows.kind)
    k = rows.k[slot].view(dtype).reshape(n_kv_heads, -1, head_dim, TILE)
    return k, rows.v[slot].view(dtype).reshape(n_kv_heads, -1, head_dim)


class Staging:
    """One set of rows serves all slots and layers in turn: `rows` has no distance between slots."""

    def __init__(self, setting: KvSetting) -> None:
        n_heads, head_dim = setting.config.n_kv_heads, setting.config.head_dim
        rows = setting.backend.kv_rows(1, 1, n_heads, setting.ctx_size, head_dim, setting.kind)[0]
        self.rows = replace(rows, slot_bytes=0)
        self._k, self._v = row_views(rows, 0, n_heads, head_dim)

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """K and V of positions first to last - 1. Shapes: float32 [Hk, n, D]."""
        tiles = self._k[:, first // TILE : -(-last // TILE)]
        n_heads, n_tiles, head_dim, _ = tiles.shape
        k = tiles.swapaxes(2, 3).reshape(n_heads, n_tiles * TILE, head_dim)
        skip = first % TILE
        return (
            k[:, skip : skip + last - first].astype(np.float32),
            self._v[:, first:last].astype(np.float32),
        )

    def write(self, first: int, k: np.ndarray, v: np.ndarray) -> None:
        """Lays rows down from position `first`. Shapes: k and v [Hk, n, D]."""
        positions = np.arange(first, first + k.shape[1])
        self._k[:, positions // TILE, :, positions % TILE] = k.swapaxes(0, 1)
        self._v[:, first : first + v.shape[1]] = v
