"""Arrays on cache-line boundaries."""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

ALIGNMENT = 128
ROW_FLOATS = 32  # rows of activations are padded to pairs of weight tiles


def aligned(n_bytes: int, *, zeroed: bool = False) -> np.ndarray:
    """uint8 [n_bytes] starting on a cache line; untouched pages cost nothing."""
    raw = (np.zeros if zeroed else np.empty)(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes]


def reserved(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 zeros whose memory is taken page by page as it is written.

    Small pages on purpose: a KV cache is many long runs filled from their starts, and huge pages would be
    zeroed and held for all of them at the first token.
    """
    n_bytes = int(np.prod(shape, dtype=np.int64))
    mapping = mmap.mmap(-1, max(n_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(mapping, np.uint8)[:n_bytes].reshape(shape)


def aligned_array(shape: tuple[int, ...], dtype: npt.DTypeLike, *, zeroed: bool = False) -> np.ndarray:
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return aligned(n_bytes, zeroed=zeroed).view(dtype).reshape(shape)


def padded(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
