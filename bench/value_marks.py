"""Positions in the lowest bits of value rows."""

from __future__ import annotations

import numpy as np

from yakvrt.kvcache.contract import KvSetting
from yakvrt.ops import element_type

FACTOR = 0x9E3779B1  # odd, hence with an inverse modulo powers of two


class ValueMarks:
    """One bit in each of a row's first channels, 32 where a head has as many: the position times FACTOR.

    All bits depend on the position, so a row without a mark most likely reads as a position that is none.
    Raises: ValueError where a head has too few channels for the context.
    """

    def __init__(self, setting: KvSetting) -> None:
        n_bits = min(32, setting.config.head_dim)
        if setting.ctx_size > 1 << n_bits:
            raise ValueError(f"{setting.ctx_size} positions do not fit in {n_bits} channels of a head")
        self._shifts = np.arange(n_bits, dtype=np.uint64)
        self._inverse = np.uint64(pow(FACTOR, -1, 1 << n_bits))
        self._below = np.uint64((1 << n_bits) - 1)
        self._dtype = element_type(setting.kind)
        self._word = np.dtype(f"u{self._dtype.itemsize}")
        self._head_dim = setting.config.head_dim

    def mark(self, values: np.ndarray, first: int) -> np.ndarray:
        """Values of positions first, first + 1, ..., marked. Shapes: [n, Hk * D] -> float32 [n, Hk * D]."""
        words = values.astype(self._dtype).view(self._word).reshape(len(values), -1, self._head_dim)
        marks = np.arange(first, first + len(values), dtype=np.uint64) * np.uint64(FACTOR)
        bits = (marks[:, None] >> self._shifts).astype(self._word) & self._word.type(1)
        marked = words[..., : len(self._shifts)]
        marked >>= 1
        marked <<= 1
        marked |= bits[:, None]
        return words.view(self._dtype).reshape(values.shape).astype(np.float32)

    def positions(self, values: np.ndarray) -> np.ndarray:
        """Shapes: marked values [..., D] -> int64 [...]."""
        marked = np.ascontiguousarray(values[..., : len(self._shifts)].astype(self._dtype))
        bits = (marked.view(self._word) & self._word.type(1)).astype(np.uint64)
        marks = (bits << self._shifts).sum(axis=-1, dtype=np.uint64)
        found: np.ndarray = (marks * self._inverse & self._below).astype(np.int64)
        return found
