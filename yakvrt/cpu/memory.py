"""Arrays on cache-line boundaries."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ALIGNMENT = 128
ROW_FLOATS = 32  # rows of activations are padded to pairs of weight tiles


def aligned(n_bytes: int, *, zeroed: bool = False) -> np.ndarray:
    """uint8 [n_bytes] starting on a cache line; untouched pages cost nothing."""
    raw = (np.zeros if zeroed else np.empty)(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes]


def aligned_array(shape: tuple[int, ...], dtype: npt.DTypeLike, *, zeroed: bool = False) -> np.ndarray:
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return aligned(n_bytes, zeroed=zeroed).view(dtype).reshape(shape)


def padded(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
