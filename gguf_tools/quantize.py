"""Float rows to stored blocks, by the rules of ggml's reference quantisers.

Source: quantize_row_q8_0_ref and quantize_row_q4_0_ref in ggml's ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats import FORMATS

Blocks = NDArray[np.void]
F32 = NDArray[np.float32]

# Values encoded at a time, so that a large tensor needs little temporary memory.
CHUNK_LEN: Final = 1 << 16


def quantize(x: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Encodes rows of floating-point numbers as the named type.

    Shapes: x (..., cols) -> (..., row_bytes).
    Raises: ValueError for a type that is not written here, rows that are not whole blocks, or values
        that the type's blocks cannot hold.
    """
    encode = _ENCODERS.get(name)
    if encode is None:
        raise ValueError(f"tensor type {name!r} cannot be written; choose one of {', '.join(_ENCODERS)}")
    fmt = FORMATS[name]
    if x.ndim == 0:
        raise ValueError(f"a single number is not a row; {name} rows need at least one axis")
    row_bytes = fmt.row_bytes(x.shape[-1])
    values = np.ascontiguousarray(x).reshape(-1, fmt.block_len)
    out = np.empty((len(values), 1), fmt.block)
    step = CHUNK_LEN // fmt.block_len
    with np.errstate(all="ignore"):
        for start in range(0, len(values), step):
            encode(values[start : start + step].astype(np.float32), out[start : start + step, 0])
    return out.view(np.uint8).reshape(*x.shape[:-1], row_bytes)


def _numbers(x: F32, out: Blocks) -> None:
    out["x"] = x


def _bf16(x: F32, out: Blocks) -> None:
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # Rounding could carry a NaN into infinity or zero: NaN is cut off and made quiet instead.
    quiet = (bits >> np.uint32(16)) | np.uint32(0x0040)
    out["x"] = np.where(np.isnan(x), quiet, rounded)


def _inverse(d: F32, name: str) -> F32:
    """1 / d, and 0 where d is 0 or so small that its inverse is infinite (such blocks become zero)."""
    if not np.all(np.abs(d) < 65520.0):
        raise ValueError(
            f"the tensor holds NaN, infinite or too large values, which {name} cannot store; use BF16 or F32"
        )
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


def _q4_0(x: F32, out: Blocks) -> None:
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    d = largest / np.float32(-8)
    q = np.minimum(x * _inverse(d, "Q4_0") + np.float32(8.5), np.float32(15)).astype(np.uint8)
    out["d"] = d
    out["qs"] = q[:, :16] | (q[:, 16:] << np.uint8(4))


_ENCODERS: Final[Mapping[str, Callable[[F32, Blocks], None]]] = MappingProxyType(
    {"F32": _numbers, "F16": _numbers, "BF16": _bf16, "Q8_0": _q8_0, "Q4_0": _q4_0}
)
