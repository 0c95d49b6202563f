"""Looks for values that no healthy tensor holds: NaN, infinities, scales out of all proportion.

A block's values are finite when its scales are, so that only those are read of quantised types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.chunks import stored_chunks
from gguf_tools.formats import Format
from gguf_tools.reader import Tensor
from gguf_tools.terminal import shown

# How often the median scale the largest one may be; outliers of real models stay far below.
PROPORTION: Final = 10_000.0
_PLAIN: Final = frozenset({"F32", "F16", "BF16", "F64"})
_INTEGERS: Final = frozenset({"I8", "I16", "I32", "I64"})


def check_values(tensor: Tensor, progress: Callable[[int], None]) -> Iterator[tuple[bool, str]]:
    """Reads a whole tensor; yields (is an error, what) for everything found."""
    fmt, name = tensor.format, shown(tensor.name)
    n_bad, first_bad, is_zero, start = 0, 0, True, 0
    largest, typical = 0.0, []
    for chunk in stored_chunks(tensor):
        if fmt.name not in _INTEGERS:
            scales = _scales(chunk, fmt)
            bad = ~np.isfinite(scales)
            here = int(np.count_nonzero(bad))
            if here and not n_bad:
                first_bad = start + int(np.argmax(bad.any(axis=1)))
            n_bad += here
            is_zero = is_zero and not scales.any()
            if fmt.name not in _PLAIN and not here:
                sizes = np.abs(scales[:, 0])
                largest = max(largest, float(sizes.max()))
                typical.append(float(np.median(sizes)))
        start += len(chunk)
        progress(chunk.nbytes)
    what = "values are" if fmt.name in _PLAIN else "block scales are"
    if n_bad:
        place = tensor.offset + first_bad * fmt.block_bytes
        yield True, f"{name}: {n_bad} {what} NaN or infinite, the first at byte {place}"
    elif fmt.name not in _INTEGERS and is_zero:
        yield False, f"{name}: all values are zero"
    median = float(np.median(typical)) if typical else 0.0
    if median and largest > PROPORTION * median:
        yield False, f"{name}: the largest block scale, {largest:.4g}, is {largest / median:.0f} x the median"


def _scales(chunk: NDArray[np.uint8], fmt: Format) -> NDArray[np.floating[Any]]:
    """Every number that must be finite, the main scale first.

    Shapes: (n_blocks, block_bytes) -> (n_blocks, k).
    """
    stored = np.ascontiguousarray(chunk).view(fmt.block)[:, 0]
    match fmt.name:
        case "BF16":
            return (stored["x"].astype(np.uint32) << np.uint32(16)).view(np.float32)
        case "MXFP4":
            return _exponents(stored["e"])
        case "NVFP4":
            # Four bits of exponent, three of fraction; all ones is NaN.
            return np.where(stored["d"] & 0x7F == 0x7F, np.float32(np.nan), stored["d"].astype(np.float32))
        case "IQ1_M":
            # The scale's four nibbles are the top bits of the four words of scales.
            words = np.ascontiguousarray(stored["scales"]).view("<u2") >> np.uint16(12)
            bits = words << (np.arange(4, dtype=np.uint16) * np.uint16(4))
            return np.bitwise_or.reduce(bits, axis=1, keepdims=True).astype("<u2").view("<f2")
    floats = [name for name in ("x", "d", "dmin", "m", "s") if name in (fmt.block.names or ())]
    return np.concatenate([stored[name] for name in floats], axis=1)


def _exponents(e: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Powers of two with a bias of 127; 255 is NaN."""
    powers = np.ldexp(np.float32(1), np.minimum(e, 254).astype(np.int32) - 127)
    return np.where(e == 255, np.float32(np.nan), powers)
