"""The search for the K types' scales: least squares per sub-block, then integer scales, then the block's own.

Every sub-block is fitted from several starting scales, each improved by linear least squares on its levels.
The block's float16 factors follow from the largest fitted scale (and minimum); each sub-block then tries
the neighbours of its rounded integer scale, and the factors are fitted anew to the levels found.
The error that is minimised is the plain sum of squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.quantize_kernels import LaneKernels, sum_rows
from gguf_tools.quantize_plain import F16_OVERFLOW, refuse

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]

ONE: Final = np.float32(1)
ZERO: Final = np.float32(0)
# Spans below this have infinite inverses and are far under what float16 factors can scale.
SMALLEST_SPAN: Final = np.float32(1e-30)
# Squares and sums of larger values leave float32; no type here can hold them either.
LARGEST: Final = np.float32(1e12)
SMALLEST_F16: Final = np.float32(2.0**-24)
# Top levels that the largest value is placed on, relative to the type's own.
_STEPS: Final = tuple(np.float32(0.2 * i) for i in range(-4, 5))
_OPPOSITE_STEPS: Final = tuple(np.float32(0.4 * i) for i in range(-3, 1))
# Integers that the block's largest scale is placed on, the last one and those before it.
_PLACES: Final = 4
# Neighbours of the rounded scale that are tried with the minimum that fits each, and then of the minimum.
_SCALE_NEIGHBOURS: Final = (0, 1, -1)
_MIN_NEIGHBOURS: Final = (1, -1)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a block stores: factors per block, integer scales and minimums per sub-block, levels.

    Shapes: factor, min_factor (blocks,); scales, mins (blocks, subs); levels (blocks, 256).
    """

    factor: F32
    min_factor: F32
    scales: I8
    mins: I8
    levels: I8


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of one type: values per sub-block, its levels low..high and integer scales from..to.

    with_min: each sub-block also subtracts a multiple of the block's minimum factor.
    """

    name: str
    sub_len: int
    low: int
    high: int
    scale_low: int
    scale_high: int
    with_min: bool


def fit(x: F32, shape: Shape, kernels: LaneKernels) -> Fitted:
    """Finds what to store for blocks of 256 values.

    Shapes: x (blocks, 256).
    Raises: ValueError for NaN, infinite or too large values.
    """
    if not np.all(np.abs(x) < LARGEST):
        raise refuse(shape.name)
    n_blocks = len(x)
    # Lane order: all first sub-blocks, then all second ones, so that sums over a block are over rows.
    lanes = x.reshape(n_blocks, -1, shape.sub_len).transpose(2, 1, 0)
    rows = np.ascontiguousarray(lanes).reshape(shape.sub_len, -1)
    scale, low = _affine(rows, shape, kernels) if shape.with_min else _scale_only(rows, shape, kernels)
    search = _Search(rows, shape, kernels, n_blocks)
    return search.run(scale, low)


def _inverse(scale: F32) -> F32:
    return np.where(scale == ZERO, ZERO, ONE / scale)


def _affine(x: F32, shape: Shape, kernels: LaneKernels) -> tuple[F32, F32]:
    """Per lane the scale and the minimum (as a number >= 0 to subtract) of the best fit."""
    n_rows = np.float32(len(x))
    base = np.minimum(x.min(axis=0), ZERO)
    y = x - base
    span = y.max(axis=0)
    usable = span > SMALLEST_SPAN
    sum_y = sum_rows(y)
    sum_x = sum_y + n_rows * base
    best_gain = np.full(len(span), -np.inf, np.float32)
    best_scale, best_low = np.zeros_like(span), base.copy()

    def attempt(inverse: F32, offset: F32) -> None:
        total, squares, products = kernels.moments(y, offset, inverse, 0.0, float(shape.high))
        spread = n_rows * squares - total * total
        scale = (n_rows * products - sum_y * total) / spread
        shift = (squares * sum_y - total * products) / spread
        gain = scale * products + shift * sum_y
        # The format only subtracts: a fit that would add keeps the minimum at zero.
        adds = (base + shift > ZERO) | (spread <= ZERO)
        products_x = products + base * total
        scale_0 = products_x / squares
        gain_0 = scale_0 * products_x - base * (sum_y + sum_x)
        scale, gain = np.where(adds, scale_0, scale), np.where(adds, gain_0, gain)
        better = (squares > ZERO) & (scale > ZERO) & (gain > best_gain)
        np.copyto(best_gain, gain, where=better)
        np.copyto(best_scale, scale, where=better)
        np.copyto(best_low, np.where(adds, ZERO, base + shift), where=better)

    nothing = np.zeros_like(span)
    for step in _STEPS:
        attempt(np.where(usable, (np.float32(shape.high) + step) / span, ZERO), nothing)
    attempt(_inverse(best_scale), base - best_low)
    return best_scale, ZERO - best_low


def _scale_only(x: F32, shape: Shape, kernels: LaneKernels) -> tuple[F32, F32]:
    """Per lane the scale, of either sign, of the best fit through zero."""
    low, high = float(shape.low), float(shape.high)
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    usable = np.abs(largest) > SMALLEST_SPAN
    nothing = np.zeros_like(largest)
    best_gain, best_scale = np.zeros_like(largest), np.zeros_like(largest)

    def attempt(inverse: F32) -> None:
        _, squares, products = kernels.moments(x, nothing, inverse, low, high)
        scale = products / squares
        gain = scale * products
        better = (squares > ZERO) & (gain > best_gain)
        np.copyto(best_gain, gain, where=better)
        np.copyto(best_scale, scale, where=better)

    tops = [np.float32(low) + step for step in _STEPS] + [np.float32(high) + step for step in _OPPOSITE_STEPS]
    for top in tops:
        attempt(np.where(usable, top / largest, ZERO))
    attempt(_inverse(best_scale))
    return best_scale, nothing


class _Search:
    """The integer scales of all sub-blocks, given their fitted real ones."""

    __slots__ = ("kernels", "n_blocks", "shape", "x")

    def __init__(self, x: F32, shape: Shape, kernels: LaneKernels, n_blocks: int) -> None:
        self.x = x
        self.shape = shape
        self.kernels = kernels
        self.n_blocks = n_blocks

    def run(self, scale: F32, low: F32) -> Fitted:
        s = self.shape
        last = s.scale_low if s.scale_low < 0 else s.scale_high
        min_factor = self._factor(low, s.scale_high)
        mins = self._whole(low * self._per_lane(_inverse(min_factor)), 0)
        factor, scales, error = self._placed(scale, min_factor, mins, last)
        for back in range(1, _PLACES):
            tried_factor, tried, tried_error = self._placed(
                scale, min_factor, mins, last + back if last < 0 else last - back
            )
            better_block = self._over_block(tried_error) < self._over_block(error)
            better = self._per_lane(better_block)
            factor = np.where(better_block, tried_factor, factor)
            scales, error = np.where(better, tried, scales), np.where(better, tried_error, error)
        for up in _SCALE_NEIGHBOURS if s.with_min else _SCALE_NEIGHBOURS[1:]:
            tried = self._whole(scales + np.float32(up), s.scale_low)
            tried_mins = self._centred(factor, min_factor, tried, mins) if s.with_min else mins
            tried_error = self._error(factor, min_factor, tried, tried_mins)
            better = tried_error < error
            error = np.where(better, tried_error, error)
            scales, mins = np.where(better, tried, scales), np.where(better, tried_mins, mins)
        for up in _MIN_NEIGHBOURS if s.with_min else ():
            tried_mins = self._whole(mins + np.float32(up), 0)
            tried_error = self._error(factor, min_factor, scales, tried_mins)
            better = tried_error < error
            error, mins = np.where(better, tried_error, error), np.where(better, tried_mins, mins)
        factor, min_factor = self._refitted(factor, min_factor, scales, mins, error)
        scale, offset = scales * self._per_lane(factor), mins * self._per_lane(min_factor)
        levels = self.kernels.levels(self.x, offset, _inverse(scale), float(s.low), float(s.high))
        return Fitted(
            factor, min_factor, self._stored(scales), self._stored(mins), self._blocks_first(levels)
        )

    def _placed(self, scale: F32, min_factor: F32, mins: F32, last: int) -> tuple[F32, F32, F32]:
        """Factor, integer scales and errors when the largest scale becomes the integer `last`."""
        factor = self._factor(scale, last)
        scales = self._whole(scale * self._per_lane(_inverse(factor)), self.shape.scale_low)
        return factor, scales, self._error(factor, min_factor, scales, mins)

    def _centred(self, factor: F32, min_factor: F32, scales: F32, mins: F32) -> F32:
        """The integer minimums that fit the levels best: a coarse scale may want one several steps away."""
        s = self.shape
        scale, offset = scales * self._per_lane(factor), mins * self._per_lane(min_factor)
        total, _, _ = self.kernels.moments(self.x, offset, _inverse(scale), float(s.low), float(s.high))
        fitted = (scale * total - sum_rows(self.x)) / np.float32(len(self.x))
        return self._whole(fitted * self._per_lane(_inverse(min_factor)), 0)

    def _per_lane(self, per_block: NDArray[Any]) -> NDArray[Any]:
        return np.tile(per_block, len(self.x[0]) // self.n_blocks)

    def _whole(self, value: F32, low: int) -> F32:
        return np.rint(np.clip(value, np.float32(low), np.float32(self.shape.scale_high)))

    def _factor(self, fitted: F32, last: int) -> F32:
        """The float16 factor that places the block's largest fitted number on the integer `last`."""
        of_block = fitted.reshape(-1, self.n_blocks)
        at = np.abs(of_block).argmax(axis=0)[None]
        largest = np.take_along_axis(of_block, at, axis=0)[0]
        exact = largest / np.float32(last) + ZERO
        stored = self._half(exact)
        # Rounding a factor to nothing would lose the block; the smallest one keeps its large values.
        return np.where((stored == ZERO) & (exact != ZERO), np.copysign(SMALLEST_F16, exact), stored)

    def _half(self, factor: F32) -> F32:
        if not np.all(np.abs(factor) < F16_OVERFLOW):
            raise refuse(self.shape.name)
        return factor.astype(np.float16).astype(np.float32)

    def _error(self, factor: F32, min_factor: F32, scales: F32, mins: F32) -> F32:
        scale, offset = scales * self._per_lane(factor), mins * self._per_lane(min_factor)
        low, high = float(self.shape.low), float(self.shape.high)
        return self.kernels.residual(self.x, scale, offset, _inverse(scale), low, high)

    def _over_block(self, per_lane: F32) -> F32:
        return sum_rows(per_lane.reshape(-1, self.n_blocks))

    def _refitted(self, factor: F32, min_factor: F32, scales: F32, mins: F32, error: F32) -> tuple[F32, F32]:
        """Factors fitted to the levels by least squares, kept where they lower the block's error."""
        s = self.shape
        scale, offset = scales * self._per_lane(factor), mins * self._per_lane(min_factor)
        total, squares, products = self.kernels.moments(
            self.x, offset, _inverse(scale), float(s.low), float(s.high)
        )
        aa = self._over_block(scales * scales * squares)
        ax = self._over_block(scales * products)
        new, new_min = ax / aa, min_factor
        if s.with_min:
            am = -self._over_block(scales * mins * total)
            mm = np.float32(len(self.x)) * self._over_block(mins * mins)
            mx = -self._over_block(mins * sum_rows(self.x))
            spread = aa * mm - am * am
            both = spread > np.float32(1e-5) * aa * mm
            new = np.where(both, (ax * mm - am * mx) / spread, new)
            new_min = np.where(both, (aa * mx - am * ax) / spread, min_factor)
            new_min = np.where(new_min > ZERO, new_min, min_factor)
            new = np.where(new > ZERO, new, factor)
        # Rounding to float16 can overflow only where the old factor is as good.
        bounded = (np.abs(new) < F16_OVERFLOW) & (np.abs(new_min) < F16_OVERFLOW)
        new = self._half(np.where(bounded, new, factor))
        new_min = self._half(np.where(bounded, new_min, min_factor))
        new_error = self._error(new, new_min, scales, mins)
        better = self._over_block(new_error) < self._over_block(error)
        return np.where(better, new, factor), np.where(better, new_min, min_factor)

    def _stored(self, whole: F32) -> I8:
        return np.ascontiguousarray(whole.reshape(-1, self.n_blocks).T.astype(np.int8))

    def _blocks_first(self, levels: I8) -> I8:
        subs = levels.reshape(self.shape.sub_len, -1, self.n_blocks)
        return np.ascontiguousarray(subs.transpose(2, 1, 0)).reshape(self.n_blocks, -1)
