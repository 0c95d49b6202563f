"""Weights and activations in the forms that CUDA matmuls read."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from gguf_tools.dequantize import dequantize
from gguf_tools.formats import FORMATS
from yakvrt.kernels.device_layout import DEVICE_LAYOUTS, UNIT, device_planes_ref
from yakvrt.kernels.pack_activations import quantize_activations_ref

from .arrays import RNG, normal, repeated, to_bf16

SCALES = ("d", "m", "dmin")
DISTINCT = (
    1021  # rows of a large matrix, which repeats them: the truth stays cheap, and no stride fits by chance
)


def stored_rows(name: str, n_rows: int, n_cols: int) -> np.ndarray:
    """GGUF rows: random codes whose scales are small numbers, or random numbers."""
    if DEVICE_LAYOUTS[name].is_float:
        numbers = normal(n_rows, n_cols)
        held = {"F32": numbers, "F16": numbers.astype(np.float16)}.get(name)
        return (to_bf16(numbers) if held is None else held).view(np.uint8)
    block = FORMATS[name]
    raw = RNG.integers(0, 256, (n_rows * n_cols // block.block_len, block.block_bytes), np.uint8)
    records = raw.view(block.block)
    for field in SCALES:
        if field in (block.block.names or ()):
            records[field] = normal(*records[field].shape, scale=0.01).astype(np.float16)
    return raw.reshape(n_rows, -1)


def device_matrix(name: str, n_rows: int, n_cols: int) -> tuple[np.ndarray, tuple[Any, ...]]:
    """float32 weights of the distinct rows, and the planes of all as a kernel's arguments; None for a plane
    that the format lacks.
    """
    weights, planes = _distinct(name, min(n_rows, DISTINCT), n_cols)
    return weights, tuple(repeated(array, n_rows) if array.size else None for array in planes)


@lru_cache(maxsize=8)
def _distinct(name: str, n_rows: int, n_cols: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    rows = stored_rows(name, n_rows, n_cols)
    planes = device_planes_ref(name, rows, n_cols)
    weights: np.ndarray = dequantize(rows, name)
    return weights, (planes.codes, planes.high, planes.scales, planes.supers)


def int8_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, terms, the numbers they stand for)."""
    codes, scales = quantize_activations_ref(x)
    sums = codes.reshape(len(x), -1, UNIT).sum(axis=2, dtype=np.int32).astype(np.float32)
    terms = np.stack([scales, scales * sums], axis=-1)
    return codes.view(np.uint32), terms, codes * np.repeat(scales.astype(np.float64), UNIT, axis=1)


def nbytes(*arrays: Any) -> int:
    """Of those that are arrays."""
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
