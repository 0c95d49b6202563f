"""Encoders of the types with 32 values a block, byte for byte as ggml's reference quantisers.

Source: quantize_row_q*_ref in ggml's ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.void]
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

# The first magnitude that rounds to infinity in float16.
F16_OVERFLOW: Final = 65520.0


def refuse(name: str) -> ValueError:
    """The error for values that no block of the type can hold."""
    return ValueError(
        f"the tensor holds NaN, infinite or too large values, which {name} cannot store; use BF16 or F32"
    )


def _inverse(d: F32, name: str) -> F32:
    """1 / d, and 0 where d is 0 or so small that its inverse is infinite (such blocks become zero)."""
    if not np.all(np.abs(d) < F16_OVERFLOW):
        raise refuse(name)
    inverse = np.float32(1) / d
    return np.where(np.isinf(inverse), np.float32(0), inverse)


def _q8_0(x: F32, out: Blocks) -> None:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d, "Q8_0")
    whole = np.trunc(scaled)
    # Halves go away from zero; adding 0.5 first would round 0.49999997 up.
    whole += np.copysign(np.abs(scaled - whole) >= np.float32(0.5), scaled)
    out["d"] = d
    out["qs"] = whole


def _signed(x: F32, out: Blocks, half: int, name: str) -> U8:
    """Levels 0 .. 2 * half - 1 around zero; the value largest in magnitude gets the level 0."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    d = largest / np.float32(-half)
    levels = x * _inverse(d, name) + np.float32(half + 0.5)
    out["d"] = d
    q: U8 = np.minimum(levels, np.float32(2 * half - 1)).astype(np.uint8)
    return q


def _from_lowest(x: F32, out: Blocks, top: int, name: str) -> U8:
    """Levels 0 .. top from the lowest to the highest value."""
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(top)
    if not np.all(np.abs(low) < F16_OVERFLOW):
        raise refuse(name)
    levels = (x - low) * _inverse(d, name) + np.float32(0.5)
    out["d"] = d
    out["m"] = low
    q: U8 = np.minimum(levels, np.float32(top)).astype(np.uint8)
    return q


def _pack_nibbles(q: U8, out: Blocks) -> None:
    out["qs"] = (q[:, :16] & np.uint8(15)) | (q[:, 16:] << np.uint8(4))


def _pack_fifth_bits(q: U8, out: Blocks) -> None:
    out["qh"] = np.packbits(q >> np.uint8(4), axis=1, bitorder="little").view("<u4")


def _q4_0(x: F32, out: Blocks) -> None:
    _pack_nibbles(_signed(x, out, 8, "Q4_0"), out)


def _q4_1(x: F32, out: Blocks) -> None:
    _pack_nibbles(_from_lowest(x, out, 15, "Q4_1"), out)


def _q5_0(x: F32, out: Blocks) -> None:
    q = _signed(x, out, 16, "Q5_0")
    _pack_nibbles(q, out)
    _pack_fifth_bits(q, out)


def _q5_1(x: F32, out: Blocks) -> None:
    q = _from_lowest(x, out, 31, "Q5_1")
    _pack_nibbles(q, out)
    _pack_fifth_bits(q, out)


PLAIN_ENCODERS: Final[Mapping[str, Callable[[F32, Blocks], Any]]] = MappingProxyType(
    {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1}
)
