"""Weights and activations in the form that CUDA matmuls read them, for their tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quants

from gguf_tools.dequantize import dequantize
from gguf_tools.formats import FORMATS
from yakvrt.kernels.device_layout import DEVICE_LAYOUTS, UNIT, Planes, device_planes_ref
from yakvrt.kernels.pack_activations import quantize_activations_ref

RNG = np.random.default_rng(23)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def stored_rows(name: str, n_rows: int, n_cols: int) -> np.ndarray:
    """GGUF rows: random codes of K formats, whose scales are small numbers; else rounded random numbers."""
    if not name.endswith("_K"):
        kind = GGMLQuantizationType[name]
        return quants.quantize(normal(n_rows, n_cols), kind).view(np.uint8).reshape(n_rows, -1)
    block = FORMATS[name]
    raw = RNG.integers(0, 256, (n_rows * n_cols // block.block_len, block.block_bytes), np.uint8)
    records = raw.view(block.block)
    for field in ("d", "dmin"):
        if field in (block.block.names or ()):
            records[field] = (normal(*records[field].shape) * 0.01).astype(np.float16)
    return raw.reshape(n_rows, -1)


def device_matrix(name: str, n_rows: int, n_cols: int) -> tuple[np.ndarray, tuple[Any, ...]]:
    """float32 weights, and their planes as a kernel's arguments; None for one that the format lacks."""
    rows = stored_rows(name, n_rows, n_cols)
    planes = device_planes_ref(name, rows, n_cols)
    weights: np.ndarray = dequantize(rows, name)
    arrays = (planes.codes, planes.high, planes.scales, planes.supers)
    return weights, tuple(array if array.size else None for array in arrays)


def int8_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, terms, the numbers they stand for)."""
    codes, scales = quantize_activations_ref(x)
    sums = codes.reshape(len(x), -1, UNIT).sum(axis=2, dtype=np.int32).astype(np.float32)
    terms = np.stack([scales, scales * sums], axis=-1)
    return codes.view(np.uint32), terms, codes * np.repeat(scales.astype(np.float64), UNIT, axis=1)


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
