"""Exact rows of one layer and one prompt, where the model attends while the prompt is taken in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..ops import ELEMENT_BYTES
from .contract import KvSetting

if TYPE_CHECKING:
    from ..config import ModelConfig


def staging_bytes(config: ModelConfig, kind: str, n_tokens: int) -> int:
    """Bytes: 2 * Hk * D * element size per token, tokens rounded up to tiles of 16."""
    padded = -(-n_tokens // 16) * 16
    return 2 * config.n_kv_heads * config.head_dim * ELEMENT_BYTES[kind] * padded


class Staging:
    """One set of rows serves all slots and layers in turn: `rows` has no distance between slots."""

    def __init__(self, setting: KvSetting) -> None:
        backend, n_heads, head_dim = setting.backend, setting.config.n_kv_heads, setting.config.head_dim
        rows = backend.kv_rows(1, 1, n_heads, setting.ctx_size, head_dim, setting.kind)[0]
        self.rows = replace(rows, slot_bytes=0)
        self._rows = backend.slot_rows(rows, 0, n_heads, head_dim)

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """K and V of positions first to last - 1. Shapes: float32 [Hk, n, D]."""
        return self._rows.read(first, last)

    def write(self, first: int, k: np.ndarray, v: np.ndarray) -> None:
        """Lays rows down from position `first`. Shapes: k and v [Hk, n, D]."""
        self._rows.write(first, k, v)
