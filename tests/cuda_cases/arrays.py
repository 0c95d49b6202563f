"""Arrays for cases of CUDA kernels: random numbers, poison, the number formats of caches."""

from __future__ import annotations

from typing import Any

import numpy as np

from yakvrt.higgs_grids import load_grid
from yakvrt.kernels.higgs_layout import GridTables, Selector, byte_grid, pack_tables

from .case import poison_of

RNG = np.random.default_rng(23)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    numbers = RNG.standard_normal(shape, np.float32)
    return numbers if scale == 1 else numbers * np.float32(scale)


def poisoned(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """An array that shows what is not written: NaN, or unlikely integers."""
    dtype = np.dtype(dtype)
    return np.full(shape, np.nan if dtype.kind == "f" else poison_of(dtype), dtype)


def selector_grids(selector: Selector) -> tuple[np.ndarray, np.ndarray | None]:
    """The grid of a selector's codes and that of its mean rows."""
    return load_grid(selector.grid), load_grid(selector.mean_grid) if selector.mean_grid else None


def selector_words(selector: Selector) -> tuple[np.ndarray, float, np.ndarray | None, float]:
    """Words of bytes of these grids, and their steps, as kernels take them."""
    grid, mean_grid = selector_grids(selector)
    return *_words(grid), *(_words(mean_grid) if mean_grid is not None else (None, 0.0))


def _words(grid: np.ndarray) -> tuple[np.ndarray, float]:
    at, (_, step) = GridTables(grid.shape[1], 256).words8, byte_grid(grid)
    return pack_tables(grid)[at:].view(np.uint32), float(step)


def count(n: int) -> np.ndarray:
    """A row count as kernels read it."""
    return np.array([n], np.int64)


def blocks(n: int, per_block: int) -> int:
    return -(-n // per_block)


def repeated(array: np.ndarray, n: int, axis: int = 0) -> np.ndarray:
    """n rows along an axis, the given ones over and over."""
    times = [1] * array.ndim
    times[axis] = blocks(n, array.shape[axis])
    return np.ascontiguousarray(np.take(np.tile(array, times), range(n), axis)) if times[axis] > 1 else array


def to_bf16(x: np.ndarray) -> np.ndarray:
    """float32 as bfloat16 in uint16, rounded to even; NaN stays one."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)
    return np.where(np.isnan(x), np.uint16(0x7FC0), (rounded >> 16).astype(np.uint16))


def from_bf16(halves: np.ndarray) -> np.ndarray:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def stored(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as f32, f16 or bf16 holds them, and their memory: float32, or pairs of halves [..., n / 2]."""
    if kind == "f32":
        return x, x
    with np.errstate(over="ignore"):
        halves = to_bf16(x) if kind == "bf16" else x.astype(np.float16)
    values = from_bf16(halves) if kind == "bf16" else halves.astype(np.float32)
    return values, halves.view(np.uint32)


def bf16_words(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rounded numbers, pairs of them in uint32)."""
    return stored(x, "bf16")


def sample(n: int, most: int) -> list[int]:
    """The first and the last of n, and others between, at most so many."""
    if n <= most:
        return list(range(n))
    between = RNG.choice(np.arange(1, n - 1), most - 2, replace=False)
    return [0, *sorted(int(i) for i in between), n - 1]
