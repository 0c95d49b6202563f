"""How far two tensors of the same shape are apart, whatever their stored types."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gguf_tools.chunks import DECODED_LEN, Stored, blocks, decoded

F64 = NDArray[np.float64]


@dataclass(slots=True)
class Difference:
    """Sums over the values seen so far of two tensors a and b; d = a - b.

    A place where one holds NaN or infinity and the other does not, or another infinity, counts as odd
    and in no sum.
    """

    n_values: int = 0
    n_odd: int = 0
    identical: bool = False
    largest: float = 0.0
    sum_abs: float = 0.0
    sum_square: float = 0.0
    sum_aa: float = 0.0
    sum_bb: float = 0.0
    sum_ab: float = 0.0

    @property
    def max_abs(self) -> float:
        """Largest |d|; infinite when there are odd places."""
        return math.inf if self.n_odd else self.largest

    @property
    def mean_abs(self) -> float:
        """Mean of |d|."""
        return self.sum_abs / max(1, self.n_values)

    @property
    def rmse(self) -> float:
        """Root of the mean of d squared."""
        return math.sqrt(self.sum_square / max(1, self.n_values))

    @property
    def relative_rmse(self) -> float:
        """RMSE divided by the root mean square of b; 0 when both are zero."""
        if self.n_odd:
            return math.inf
        if not self.sum_bb:
            return math.inf if self.sum_square else 0.0
        return math.sqrt(self.sum_square / self.sum_bb)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between a and b as vectors; 1 when both are zero, 0 when one is."""
        if self.identical or self.sum_aa == self.sum_bb == 0:
            return 1.0
        product = math.sqrt(self.sum_aa) * math.sqrt(self.sum_bb)
        return self.sum_ab / product if product else 0.0

    def add(self, a: F64, b: F64) -> None:
        """Counts values of the same places in; a is used up."""
        aa, bb = _dot(a, a), _dot(b, b)
        # Sums of squares of float32 stay finite in float64 unless a value is not; the mask is rarely needed.
        if not math.isfinite(aa + bb):
            finite = np.isfinite(a) & np.isfinite(b)
            alike = (a == b) | (np.isnan(a) & np.isnan(b))
            self.n_odd += int(np.count_nonzero(~finite & ~alike))
            a, b = a[finite], b[finite]
            aa, bb = _dot(a, a), _dot(b, b)
        self.n_values += a.size
        if not a.size:
            return
        self.sum_aa += aa
        self.sum_bb += bb
        self.sum_ab += _dot(a, b)
        d = np.subtract(a, b, out=a)
        np.abs(d, out=d)
        self.largest = max(self.largest, float(d.max()))
        self.sum_abs += float(d.sum())
        self.sum_square += _dot(d, d)


def _dot(a: F64, b: F64) -> float:
    # Not a @ b: the threads that a BLAS library starts for it wait for each other on a busy machine.
    return float(np.einsum("i,i->", a, b))


def difference(
    a: Stored, b: Stored, progress: Callable[[int], None], *, compiled: bool = False
) -> Difference:
    """Compares two tensors of one shape, a piece at a time; `progress` is told the bytes of a gone through.

    `compiled` as for dequantize.
    Raises: ValueError for types that cannot be decoded, unless both are the same bytes.
    """
    found = Difference()
    # Gathered once: a tensor of another format may be put together on access.
    a_blocks, b_blocks = blocks(a), blocks(b)
    a_step, b_step = DECODED_LEN // a.format.block_len, DECODED_LEN // b.format.block_len
    if a.format == b.format and _same(a_blocks, b_blocks, a_step):
        progress(a_blocks.nbytes)
        found.identical = True
        found.n_values = a_blocks.shape[0] * a.format.block_len
    else:
        # Made once: new arrays for every piece cost more than the arithmetic.
        decoded_room, (mine, theirs) = np.empty(DECODED_LEN, np.float32), np.empty((2, DECODED_LEN))
        for i in range(-(-len(a_blocks) // a_step)):
            piece = a_blocks[i * a_step : (i + 1) * a_step]
            other = b_blocks[i * b_step : (i + 1) * b_step]
            n_values = len(piece) * a.format.block_len
            mine[:n_values] = decoded(piece, a.format, compiled=compiled, room=decoded_room)
            theirs[:n_values] = decoded(other, b.format, compiled=compiled, room=decoded_room)
            found.add(mine[:n_values], theirs[:n_values])
            progress(piece.nbytes)
    a.release()
    b.release()
    return found


def _same(a: NDArray[np.uint8], b: NDArray[np.uint8], step: int) -> bool:
    return all(
        np.array_equal(a[start : start + step], b[start : start + step]) for start in range(0, len(a), step)
    )
