"""What is kept of a prompt's chunks: landmarks, outliers, keys of low rank; and what remains after a cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .chosen_rows import top
from .chunk_layout import ChunkShape
from .low_rank_keys import LowRankKeys
from .rope_table import RopeTable


@dataclass(frozen=True, slots=True)
class LowRankChunks:
    """Of a prompt's n_chunks chunks, in front of its tail; of each head the outliers and the others are all.

    Shapes: landmarks float32 [Hk, n_others, D], numbers [Hk, n_others] of their chunks and outliers
    [Hk, n_outliers], both ascending.
    """

    n_chunks: int
    keys: LowRankKeys
    landmarks: np.ndarray
    numbers: np.ndarray
    outliers: np.ndarray

    @classmethod
    def of(cls, k: np.ndarray, shape: ChunkShape, rope: RopeTable) -> LowRankChunks:
        """Of the exact keys of a prompt, float32 [Hk, n, D], turned by RoPE."""
        n_heads, n, dim = k.shape
        n_chunks = shape.chunks(n)
        chunks = k[:, : n_chunks * shape.page].reshape(n_heads, n_chunks, shape.page, dim)
        landmarks = chunks.mean(axis=2)
        outliers, numbers = outlier_chunks(chunks, landmarks, shape.outlier_chunks(n_chunks))
        n_low_rank = n_chunks * shape.page if numbers.shape[1] else 0
        keys = LowRankKeys.of(rope.unrotate(k), n_low_rank, shape.rank)
        return cls(n_chunks, keys, landmarks[np.arange(n_heads)[:, None], numbers], numbers, outliers)


def outlier_chunks(chunks: np.ndarray, landmarks: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the n chunks of each head whose worst key is least like its landmark by cosine, and of the
    others, both ascending.

    Shapes: chunks [Hk, m, c, D], landmarks [Hk, m, D] -> [Hk, n], [Hk, m - n].
    """
    lengths = np.linalg.norm(chunks, axis=-1) * np.linalg.norm(landmarks, axis=-1)[..., None]
    dots = (chunks @ landmarks[..., None])[..., 0]
    likeness = (dots / np.maximum(lengths, np.float32(1e-30))).min(axis=-1, initial=1.0)
    outliers = top(-likeness, n) if n else np.empty((len(chunks), 0), np.int64)
    other = np.ones(likeness.shape, bool)
    np.put_along_axis(other, outliers, False, axis=1)
    return outliers, np.nonzero(other)[1].reshape(len(chunks), -1) if other.any() else outliers[:, :0]


def chunks_below(numbers: np.ndarray, n_others: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each head's first n_others chunk numbers, which ascend, those below `end` and zeros, and how many.

    Shapes: numbers [Hk, n], n_others and end [Hk].
    """
    below = (np.arange(numbers.shape[1]) < n_others[:, None]) & (numbers < end[:, None])
    return np.where(below, numbers, 0), below.sum(axis=1)
