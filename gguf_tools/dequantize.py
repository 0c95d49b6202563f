"""Rows of stored blocks to float32, bit for bit as gguf-py's reference decodes them.

Source: dequantize_row_* in ggml's ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.dequantize_compiled import available, compiled_decoder
from gguf_tools.formats import FORMATS, Format

Blocks = NDArray[np.void]
F32 = NDArray[np.float32]

# Values decoded at a time: the temporaries of one chunk stay inside the second-level cache.
CHUNK_LEN: Final = 1 << 16
_INTEGERS: Final = frozenset({"I8", "I16", "I32", "I64"})


def dequantize(data: NDArray[np.uint8], name: str, *, out: F32 | None = None, compiled: bool = False) -> F32:
    """Decodes rows of bytes of the named type into `out`, or into a new array, and returns it.

    `compiled`: use LLVM, where it is installed, for the types it gains on; the bits are the same.
    Shapes: data (..., row_bytes) -> (..., cols).
    Raises: ValueError for a type that cannot be decoded here, rows that are not whole blocks, or an `out`
        that is no contiguous float32 array of the result's shape.
    """
    fmt = FORMATS.get(name)
    if fmt is None:
        raise ValueError(f"tensor type {name!r} is not known; known are {', '.join(FORMATS)}")
    if data.dtype != np.uint8 or data.ndim == 0 or data.shape[-1] % fmt.block_bytes:
        raise ValueError(
            f"{name} rows are uint8 arrays whose last axis is a multiple of {fmt.block_bytes} bytes, "
            f"not {data.dtype} of shape {data.shape}"
        )
    shape = (*data.shape[:-1], data.shape[-1] // fmt.block_bytes * fmt.block_len)
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32 or not out.flags.carray:
        raise ValueError(
            f"the result is a float32 array of shape {shape}; `out` must be one, contiguous and writable, "
            f"not {out.dtype} of shape {out.shape}"
        )
    decode = _DECODERS.get(name) or _library_decoder(fmt)
    stored = np.ascontiguousarray(data).reshape(-1)
    n_compiled = compiled_decoder(name)(stored, out.reshape(-1)) if compiled and available(name) else 0
    blocks = stored.view(fmt.block)[n_compiled // fmt.block_len :]
    values = out.reshape(-1)[n_compiled:].reshape(len(blocks), fmt.block_len)
    step = max(1, CHUNK_LEN // fmt.block_len)
    # Infinite scales are legal in a file and give infinities and NaN, as in the reference.
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            decode(blocks[start : start + step], values[start : start + step])
    return out


def _scale(field: NDArray[Any]) -> F32:
    return field.astype(np.float32)


def _nibbles(qs: NDArray[np.uint8], run: int) -> NDArray[np.uint8]:
    """The low then the high four bits of each run of bytes: (n, bytes) -> (n, bytes / run, 2, run)."""
    runs = qs.reshape(len(qs), -1, 1, run)
    return np.concatenate((runs & 15, runs >> 4), axis=2)


def _bits(packed: NDArray[np.uint8], width: int, run: int) -> NDArray[np.uint8]:
    """Fields of `width` bits, lowest first, of each run: (n, bytes) -> (n, bytes / run, 8 / width, run)."""
    shifts = np.arange(0, 8, width, dtype=np.uint8).reshape(1, 1, -1, 1)
    return (packed.reshape(len(packed), -1, 1, run) >> shifts) & np.uint8((1 << width) - 1)


def _numbers(b: Blocks, out: F32) -> None:
    out[...] = b["x"]


def _bf16(b: Blocks, out: F32) -> None:
    np.left_shift(b["x"], 16, out=out.view(np.uint32), dtype=np.uint32)


def _q4_0(b: Blocks, out: F32) -> None:
    q = _nibbles(b["qs"], 16).reshape(out.shape).view(np.int8) - np.int8(8)
    np.multiply(_scale(b["d"]), q, out=out)


def _q4_1(b: Blocks, out: F32) -> None:
    np.multiply(_scale(b["d"]), _nibbles(b["qs"], 16).reshape(out.shape), out=out)
    out += _scale(b["m"])


def _five_bits(b: Blocks) -> NDArray[np.uint8]:
    high = (b["qh"] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    return _nibbles(b["qs"], 16).reshape(len(b), 32) | (high.astype(np.uint8) << np.uint8(4))


def _q5_0(b: Blocks, out: F32) -> None:
    np.multiply(_scale(b["d"]), _five_bits(b).view(np.int8) - np.int8(16), out=out)


def _q5_1(b: Blocks, out: F32) -> None:
    np.multiply(_scale(b["d"]), _five_bits(b), out=out)
    out += _scale(b["m"])


def _q8_0(b: Blocks, out: F32) -> None:
    np.multiply(b["qs"], _scale(b["d"]), out=out)


def _q2_k(b: Blocks, out: F32) -> None:
    n = len(b)
    d = _scale(b["d"]) * _scale(b["scales"] & 15)
    m = _scale(b["dmin"]) * _scale(b["scales"] >> 4)
    runs = out.reshape(n, 16, 16)
    np.multiply(d.reshape(n, 16, 1), _bits(b["qs"], 2, 32).reshape(runs.shape), out=runs)
    runs -= m.reshape(n, 16, 1)


def _q3_k(b: Blocks, out: F32) -> None:
    n = len(b)
    # Sixteen 6-bit scales: low nibbles in the first 8 bytes, high 2 bits in the last 4.
    low = _nibbles(b["scales"][:, :8], 8).reshape(n, 16)
    high = _bits(b["scales"][:, 8:], 2, 4).reshape(n, 16)
    scales = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    d = (_scale(b["d"]) * _scale(scales)).reshape(n, 16, 1)
    # A clear mask bit takes 4 off: the mask holds the inverted third bit.
    missing = (_bits(b["hmask"], 1, 32) ^ np.uint8(1)) << np.uint8(2)
    q = _bits(b["qs"], 2, 32).reshape(n, 256).view(np.int8) - missing.reshape(n, 256).view(np.int8)
    np.multiply(d, q.reshape(n, 16, 16), out=out.reshape(n, 16, 16))


def _scales_and_mins(b: Blocks) -> tuple[F32, F32]:
    """The eight scales and eight minimums of Q4_K and Q5_K, six bits each in twelve bytes."""
    first, second, rest = np.split(b["scales"], 3, axis=-1)
    scales = np.concatenate((first & 63, (rest & 15) | ((first >> 2) & 48)), axis=-1)
    mins = np.concatenate((second & 63, (rest >> 4) | ((second >> 2) & 48)), axis=-1)
    d = _scale(b["d"]) * _scale(scales)
    m = _scale(b["dmin"]) * _scale(mins)
    return d.reshape(-1, 8, 1), m.reshape(-1, 8, 1)


def _q4_k(b: Blocks, out: F32) -> None:
    d, m = _scales_and_mins(b)
    runs = out.reshape(-1, 8, 32)
    np.multiply(d, _nibbles(b["qs"], 32).reshape(runs.shape), out=runs)
    runs -= m


def _q5_k(b: Blocks, out: F32) -> None:
    d, m = _scales_and_mins(b)
    runs = out.reshape(-1, 8, 32)
    high = _bits(b["qh"], 1, 32).reshape(runs.shape) << np.uint8(4)
    np.multiply(d, _nibbles(b["qs"], 32).reshape(runs.shape) | high, out=runs)
    runs -= m


def _q6_k(b: Blocks, out: F32) -> None:
    n = len(b)
    high = _bits(b["qh"], 2, 32).reshape(n, 256) << np.uint8(4)
    q = (_nibbles(b["ql"], 64).reshape(n, 256) | high).view(np.int8) - np.int8(32)
    d = (_scale(b["d"]) * _scale(b["scales"])).reshape(n, 16, 1)
    np.multiply(d, q.reshape(n, 16, 16), out=out.reshape(n, 16, 16))


def _library_decoder(fmt: Format) -> Callable[[Blocks, F32], None]:
    """A decoder through the optional gguf package."""
    if fmt.name in _INTEGERS:
        raise ValueError(f"type {fmt.name} holds integers, not weights; read the tensor's data as they are")
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize as reference
    except ImportError:
        raise ValueError(
            f"type {fmt.name} needs the gguf package to be decoded; run: pip install 'yakvrt[gguf]'"
        ) from None
    try:
        kind = GGMLQuantizationType[fmt.name]
        reference(np.zeros((1, fmt.block_bytes), np.uint8), kind)
    except (KeyError, NotImplementedError):
        raise ValueError(
            f"type {fmt.name} cannot be decoded by the installed gguf package; "
            "update gguf or use a file of another type"
        ) from None

    def decode(b: Blocks, out: F32) -> None:
        # One long row: the reference works on groups of rows and is slow on many short ones.
        out.reshape(-1)[:] = reference(b.view(np.uint8).reshape(1, -1), kind)[0]

    return decode


_DECODERS: Final[Mapping[str, Callable[[Blocks, F32], None]]] = MappingProxyType(
    {
        "F32": _numbers,
        "F16": _numbers,
        "F64": _numbers,
        "BF16": _bf16,
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
    }
)
NATIVE: Final = frozenset(_DECODERS)
