"""Chunks of tokens of which a step reads the best (ShadowKV): which rows of a slot lie where.

A prompt's first tokens are divided into chunks. Of these the outliers are always read, exactly; the others
can be chosen, by a landmark that stands for their keys, and a chosen one has keys of low rank and its exact
values. All tokens behind the chunks, generated ones among them, are the tail, which is always read exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import numpy as np

from .rope_table import RopeTable

# tokens that a GPU's ring holds beside the prompt's last ones: most answers are shorter
GENERATED = 1024


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """`rule` ranks chunks of `page` tokens for a group of query heads by the products with their landmarks,
    whose probabilities are those among the chunks that can be chosen.

    Keys have `rank` numbers, which all KV heads share. outliers and local: tokens in outlier chunks and in
    the last chunks of a prompt. RoPE turns pair i by position * inv_freq[i], and scales by rope_scale.
    """

    group: int
    head_dim: int
    kind: str
    page: int
    rule: str
    rank: int
    outliers: int
    local: int
    inv_freq: tuple[float, ...]
    rope_scale: float

    proxy: ClassVar[str] = "landmark"
    has_boxes: ClassVar[bool] = False
    alpha: ClassVar[float] = inf

    @property
    def proxy_kind(self) -> str:
        """The number format of landmarks."""
        return self.kind

    @property
    def by_token(self) -> dict[str, tuple[int, int, int]]:
        """Of a slot's arrays those that are divided among tokens; the others are made of a whole prompt."""
        return {"rows": (1, 0, 0)}

    def limits(self, n_held: int) -> dict[str, tuple[int, int]]:
        """Of the arrays of a slot of n_held tokens those that place something, and between what numbers."""
        full = n_held // self.page
        counts = dict.fromkeys(("n_others", "n_chunks", "counts"), (0, full))
        return {"recalled": (-1, full - 1), "numbers": (0, max(0, full - 1)), **counts}

    def chunks(self, n: int) -> int:
        """Before the tail of a prompt of n tokens."""
        return max(0, n // self.page - self.local // self.page)

    def most_chunks(self, n_tokens: int) -> int:
        """That a slot of n_tokens has places for."""
        return max(1, n_tokens // self.page)

    def outlier_chunks(self, n_chunks: int) -> int:
        """Of so many."""
        return min(n_chunks, self.outliers // self.page)

    def ring_len(self, n_tokens: int) -> int:
        """Places of the last rows on a GPU, in a slot of n_tokens."""
        return min(n_tokens, self.local + 2 * self.page + GENERATED)

    def rope(self, n_tokens: int) -> RopeTable:
        return RopeTable(np.array(self.inv_freq), self.rope_scale, n_tokens)
