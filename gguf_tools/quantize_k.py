"""Encoders of the K types: 256 values a block in sub-blocks with integer scales of their own.

Source: the block layouts of ggml's ggml-common.h; the search is quantize_fit's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.quantize_fit import Fitted, Shape, fit
from gguf_tools.quantize_kernels import LaneKernels

Blocks = NDArray[np.void]
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

_Q2_K: Final = Shape("Q2_K", 16, 0, 3, 0, 15, with_min=True)
_Q3_K: Final = Shape("Q3_K", 16, -4, 3, -32, 31, with_min=False)
_Q4_K: Final = Shape("Q4_K", 32, 0, 15, 0, 63, with_min=True)
_Q5_K: Final = Shape("Q5_K", 32, 0, 31, 0, 63, with_min=True)
_Q6_K: Final = Shape("Q6_K", 16, -32, 31, -128, 127, with_min=False)


def _packed(values: U8, width: int, run: int) -> U8:
    """Fields of `width` bits, lowest first, for each run of bytes: (n, fields) -> (n, bytes)."""
    fields = values.reshape(len(values), -1, 8 // width, run)
    bits = fields & np.uint8((1 << width) - 1)
    out = bits[:, :, 0].copy()
    for i in range(1, 8 // width):
        out |= bits[:, :, i] << np.uint8(i * width)
    return out.reshape(len(values), -1)


def _unsigned(values: NDArray[np.int8], bias: int) -> U8:
    return (values + np.int8(bias)).view(np.uint8)


def _q2_k(x: F32, out: Blocks, kernels: LaneKernels) -> None:
    found = fit(x, _Q2_K, kernels)
    out["d"][:, 0] = found.factor
    out["dmin"][:, 0] = found.min_factor
    out["scales"] = found.scales.view(np.uint8) | (found.mins.view(np.uint8) << np.uint8(4))
    out["qs"] = _packed(found.levels.view(np.uint8), 2, 32)


def _q3_k(x: F32, out: Blocks, kernels: LaneKernels) -> None:
    found = fit(x, _Q3_K, kernels)
    levels, scales = _unsigned(found.levels, 4), _unsigned(found.scales, 32)
    out["d"][:, 0] = found.factor
    out["qs"] = _packed(levels, 2, 32)
    out["hmask"] = _packed(levels >> np.uint8(2), 1, 32)
    out["scales"][:, :8] = _packed(scales, 4, 8)
    out["scales"][:, 8:] = _packed(scales >> np.uint8(4), 2, 4)


def _store_scales_and_mins(found: Fitted, out: Blocks) -> None:
    """Eight scales and eight minimums of six bits in twelve bytes."""
    scales, mins = found.scales.view(np.uint8), found.mins.view(np.uint8)
    high, min_high = scales[:, 4:] >> np.uint8(4), mins[:, 4:] >> np.uint8(4)
    out["d"][:, 0] = found.factor
    out["dmin"][:, 0] = found.min_factor
    out["scales"][:, :4] = scales[:, :4] | (high << np.uint8(6))
    out["scales"][:, 4:8] = mins[:, :4] | (min_high << np.uint8(6))
    out["scales"][:, 8:] = (scales[:, 4:] & np.uint8(15)) | (mins[:, 4:] << np.uint8(4))


def _q4_k(x: F32, out: Blocks, kernels: LaneKernels) -> None:
    found = fit(x, _Q4_K, kernels)
    _store_scales_and_mins(found, out)
    out["qs"] = _packed(found.levels.view(np.uint8), 4, 32)


def _q5_k(x: F32, out: Blocks, kernels: LaneKernels) -> None:
    found = fit(x, _Q5_K, kernels)
    _store_scales_and_mins(found, out)
    levels = found.levels.view(np.uint8)
    out["qs"] = _packed(levels, 4, 32)
    out["qh"] = _packed(levels >> np.uint8(4), 1, 32)


def _q6_k(x: F32, out: Blocks, kernels: LaneKernels) -> None:
    found = fit(x, _Q6_K, kernels)
    levels = _unsigned(found.levels, 32)
    out["d"][:, 0] = found.factor
    out["scales"] = found.scales
    out["ql"] = _packed(levels, 4, 64)
    out["qh"] = _packed(levels >> np.uint8(4), 2, 32)


K_ENCODERS: Final[Mapping[str, Callable[[F32, Blocks, LaneKernels], Any]]] = MappingProxyType(
    {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
)
