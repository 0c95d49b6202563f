"""Weights and activations in the form that CUDA matmuls read them, for their tests."""

from __future__ import annotations

import numpy as np
from cuda_cases.arrays import normal
from cuda_cases.weights import device_matrix, int8_activations, stored_rows

from yakvrt.kernels.device_layout import DEVICE_LAYOUTS, UNIT, Planes

__all__ = ["decoded", "device_matrix", "int8_activations", "normal", "stored_rows"]


def decoded(name: str, planes: Planes) -> np.ndarray:
    """float32 weights, from the description of the planes in device_layout.py."""
    layout, n_rows = DEVICE_LAYOUTS[name], len(planes.codes)
    raw = planes.codes.view(np.uint8).reshape(n_rows, -1, 4 * layout.bits)
    if layout.bits == 32:
        return raw.reshape(n_rows, -1).view(np.float32)
    if layout.bits == 16:
        if name == "F16":
            return raw.reshape(n_rows, -1).view(np.float16).astype(np.float32)
        return (raw.reshape(n_rows, -1).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    codes = raw.view(np.int8).astype(np.int32)
    if layout.bits == 4:
        codes = np.concatenate([raw & 15, raw >> 4], axis=-1).astype(np.int32)
    if layout.high_bits:
        for column in range(UNIT):
            word = planes.high.reshape(n_rows, -1, 2)[..., column // 16]
            pair = word >> 8 * (column % 4) + 2 * (column // 4 % 4) & 3
            codes[..., column] += pair.astype(np.int32) << 4
    terms = planes.scales.reshape(n_rows, -1, layout.n_scales)
    if not layout.n_supers:
        floats = terms.view(np.float16).astype(np.float32)
        scale, offset = floats[..., :1], floats[..., 1:2] if layout.n_scales == 2 else np.float32(0)
    else:
        factors = np.repeat(planes.supers.view(np.float16).reshape(n_rows, -1, layout.n_supers), 8, axis=1)
        factors = factors.astype(np.float32)
        if layout.n_supers == 2:
            scale, offset = factors[..., :1] * (terms & 255), -factors[..., 1:] * (terms >> 8)
        else:
            scale, offset = np.repeat(factors * terms.view(np.int8), 16, axis=-1), np.float32(0)
    return (scale * (codes - layout.zero) + offset).astype(np.float32).reshape(n_rows, -1)
