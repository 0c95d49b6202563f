"""The inner loops of the K types' search, over many sub-blocks side by side.

An array holds one sub-block a column (a lane), so that every sum runs down the rows in one fixed order and
compiled and uncompiled loops give the same bytes. Levels are round(clip((x + offset) * inverse, low, high)).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class LaneKernels:
    """One implementation of the three inner loops.

    moments(x, offset, inverse, low, high): sums of level, level squared and x * level.
    residual(x, scale, offset, inverse, low, high): sum of (level * scale - offset - x) squared.
    levels(x, offset, inverse, low, high): the levels.
    Shapes: x (rows, lanes); offset, inverse, scale and every sum (lanes,).
    """

    moments: Callable[[F32, F32, F32, float, float], tuple[F32, F32, F32]]
    residual: Callable[[F32, F32, F32, F32, float, float], F32]
    levels: Callable[[F32, F32, F32, float, float], I8]


def lane_kernels(*, compiled: bool) -> LaneKernels:
    """The loops compiled by Numba where that is asked for and installed, those of numpy otherwise."""
    if compiled and importlib.util.find_spec("numba") is not None:
        from gguf_tools.quantize_numba import compiled_kernels

        return LaneKernels(*compiled_kernels())
    return LaneKernels(_moments, _residual, _levels)


def sum_rows(a: F32) -> F32:
    """The sum of the rows, first to last."""
    total: F32 = a[0].copy()
    for row in a[1:]:
        total += row
    return total


def _rounded(x: F32, offset: F32, inverse: F32, low: float, high: float) -> F32:
    levels: F32 = x + offset
    levels *= inverse
    np.clip(levels, np.float32(low), np.float32(high), out=levels)
    np.rint(levels, out=levels)
    return levels


def _moments(x: F32, offset: F32, inverse: F32, low: float, high: float) -> tuple[F32, F32, F32]:
    levels = _rounded(x, offset, inverse, low, high)
    return sum_rows(levels), sum_rows(levels * levels), sum_rows(x * levels)


def _residual(x: F32, scale: F32, offset: F32, inverse: F32, low: float, high: float) -> F32:
    error = _rounded(x, offset, inverse, low, high)
    error *= scale
    error -= offset
    error -= x
    error *= error
    return sum_rows(error)


def _levels(x: F32, offset: F32, inverse: F32, low: float, high: float) -> I8:
    return _rounded(x, offset, inverse, low, high).astype(np.int8)
