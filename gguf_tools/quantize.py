"""Float rows to stored blocks.

Q4_0 to Q8_0 are written byte for byte as ggml's reference quantisers write them; the K types by this
package's own search (see quantize_fit), whose squared error is lower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats import FORMATS
from gguf_tools.quantize_k import K_ENCODERS
from gguf_tools.quantize_kernels import lane_kernels
from gguf_tools.quantize_plain import PLAIN_ENCODERS

Blocks = NDArray[np.void]
F32 = NDArray[np.float32]

# Values encoded at a time, so that a large tensor needs little temporary memory.
CHUNK_LEN: Final = 1 << 16
# Compiled loops run without the interpreter's lock: longer ones let several threads work at once.
COMPILED_CHUNK_LEN: Final = 1 << 18
# Compiling the K types' inner loops takes longer than smaller arrays take without.
COMPILED_FROM: Final = 1 << 23


def quantize(x: NDArray[Any], name: str, *, compiled: bool = False) -> NDArray[np.uint8]:
    """Encodes rows of floating-point numbers as the named type.

    `compiled`: let Numba, where installed, compile the K types' search, which pays from about COMPILED_FROM
    values on. The bytes are the same.
    Shapes: x (..., cols) -> (..., row_bytes).
    Raises: ValueError for a type that is not written here, rows that are not whole blocks, or values
        that the type's blocks cannot hold.
    """
    if name not in WRITABLE:
        raise ValueError(f"tensor type {name!r} cannot be written; choose one of {', '.join(WRITABLE)}")
    fmt = FORMATS[name]
    if x.ndim == 0:
        raise ValueError(f"a single number is not a row; {name} rows need at least one axis")
    row_bytes = fmt.row_bytes(x.shape[-1])
    values = np.ascontiguousarray(x).reshape(-1, fmt.block_len)
    out = np.empty((len(values), 1), fmt.block)
    compiled = compiled and name in K_ENCODERS
    encode = _encoder(name, compiled)
    step = (COMPILED_CHUNK_LEN if compiled else CHUNK_LEN) // fmt.block_len
    with np.errstate(all="ignore"):
        for start in range(0, len(values), step):
            encode(values[start : start + step].astype(np.float32), out[start : start + step, 0])
    return out.view(np.uint8).reshape(*x.shape[:-1], row_bytes)


def _encoder(name: str, compiled: bool) -> Callable[[F32, Blocks], None]:
    if name in K_ENCODERS:
        kernels = lane_kernels(compiled=compiled)
        return lambda x, out: K_ENCODERS[name](x, out, kernels)
    return _NUMBER_ENCODERS.get(name) or PLAIN_ENCODERS[name]


def _numbers(x: F32, out: Blocks) -> None:
    out["x"] = x


def _bf16(x: F32, out: Blocks) -> None:
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # Rounding could carry a NaN into infinity or zero: NaN is cut off and made quiet instead.
    quiet = (bits >> np.uint32(16)) | np.uint32(0x0040)
    out["x"] = np.where(np.isnan(x), quiet, rounded)


_NUMBER_ENCODERS: Final[Mapping[str, Callable[[F32, Blocks], None]]] = MappingProxyType(
    {"F32": _numbers, "F16": _numbers, "BF16": _bf16}
)
WRITABLE: Final = (*_NUMBER_ENCODERS, *PLAIN_ENCODERS, *K_ENCODERS)
