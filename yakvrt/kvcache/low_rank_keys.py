"""Keys as rows of low rank, and chunks that their mean describes badly (ShadowKV)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.chosen_rows import top
from ..ops import element_type


@dataclass(frozen=True, slots=True)
class LowRankKeys:
    """K ~ left @ basis, in bfloat16. Shapes: left [n, r], basis [Hk, r, D]."""

    left: np.ndarray
    basis: np.ndarray

    @classmethod
    def of(cls, k: np.ndarray, n: int, rank: int) -> LowRankKeys:
        """The best rank for all tokens, kept for the first n. Shapes: k [Hk, tokens, D]."""
        heads, n_tokens, dim = k.shape
        joint = k.swapaxes(0, 1).reshape(n_tokens, heads * dim)
        _, vectors = np.linalg.eigh(joint.T.astype(np.float64) @ joint)  # ascending
        main = vectors[:, ::-1][:, :rank].astype(np.float32)
        dtype = element_type("bf16")
        basis = main.reshape(heads, dim, -1).swapaxes(1, 2)
        return cls((joint[:n] @ main).astype(dtype), np.ascontiguousarray(basis).astype(dtype))

    def rows(self, heads: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Keys of (head, position) pairs in order of heads.

        Shapes: heads, positions [n] -> float32 [n, D].
        """
        left = self.left[positions].astype(np.float32)
        out = np.empty((len(left), self.basis.shape[2]), np.float32)
        for head, basis in enumerate(self.basis):
            first, last = np.searchsorted(heads, (head, head + 1))
            out[first:last] = left[first:last] @ basis.astype(np.float32)
        return out


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
