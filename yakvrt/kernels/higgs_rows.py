"""Host rows of K or V: encoded in five formats, decoded into the rotated domain (see higgs_layout.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .higgs_encode import (
    EncodeScratch,
    decode_ref,
    encode_ref,
    make_find_codes,
    make_normalise,
    make_put_scale,
    make_rotate_rows,
)
from .higgs_layout import LARGEST_SCALE, ROW_FORMATS, TILE_TOKENS, GridTables
from .rotate import rotation

GRID_SIZES = {"d2n256": (2, 256), "d2n64": (2, 64)}


def encode_rows_ref(
    row_format: str,
    rows: np.ndarray,
    grid: np.ndarray | None,
    mean: np.ndarray | None = None,
    scale_rule: str = "norm",
    signs: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Shapes: rows [n, D] -> uint8 [n, bytes of a row], scales float16 [n]. `grid`: where it has one."""
    if row_format == "bf16":
        bits = rows.astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return rounded.astype(np.uint16).view(np.uint8), np.ones(len(rows), np.float16)
    if row_format == "q8":
        centred = rows.astype(np.float64) - (0 if mean is None else mean)
        y = centred @ rotation(rows.shape[1], signs).T.astype(np.float64)
        scale = np.abs(y).max(axis=1) / 127
        codes = np.rint(y / np.where(scale > 0, scale, 1)[:, None])
        scales = np.minimum(scale, LARGEST_SCALE).astype(np.float16)
        return codes.astype(np.int8).view(np.uint8), scales
    assert grid is not None
    codes, scales = encode_ref(rows, grid, mean, scale_rule, signs)
    return (pack_sixes_ref(codes) if ROW_FORMATS[row_format].sixes else codes), scales


def pack_sixes_ref(codes: np.ndarray) -> np.ndarray:
    """6-bit codes, 4 in 3 bytes. Shapes: uint8 [n, m] -> uint8 [n, 3 * m / 4]."""
    groups = codes.astype(np.uint32).reshape(len(codes), codes.shape[1] // 4, 4)
    words = (groups << np.array([0, 6, 12, 18], np.uint32)).sum(axis=2, dtype=np.uint32)
    return (
        (words[..., None] >> np.array([0, 8, 16], np.uint32))
        .astype(np.uint8)
        .reshape(len(codes), codes.shape[1] // 4 * 3)
    )


def unpack_sixes_ref(packed: np.ndarray) -> np.ndarray:
    """The inverse of pack_sixes_ref."""
    groups = packed.reshape(len(packed), packed.shape[1] // 3, 3).astype(np.uint32)
    words = (groups << np.array([0, 8, 16], np.uint32)).sum(2)
    codes = words[..., None] >> np.array([0, 6, 12, 18], np.uint32) & 63
    return codes.astype(np.uint8).reshape(len(packed), packed.shape[1] // 3 * 4)


def decode_rows_ref(
    row_format: str,
    codes: np.ndarray,
    scales: np.ndarray,
    grid: np.ndarray | None,
    *,
    rotated: bool = True,
    signs: bool = False,
) -> np.ndarray:
    """The rows in the domain they rest in (bf16: the original one), float64.

    Not `rotated`: the original rows.
    Shapes: codes uint8 [n, bytes], scales [n] -> [n, D]. The mean is not added.
    """
    if row_format == "bf16":
        return (codes.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if row_format == "q8":
        y = codes.view(np.int8) * scales.astype(np.float64)[:, None]
        return y if rotated else y @ rotation(y.shape[1], signs).astype(np.float64)
    assert grid is not None
    unpacked = unpack_sixes_ref(codes) if ROW_FORMATS[row_format].sixes else codes
    return decode_ref(unpacked, scales, grid, rotated=rotated, signs=signs)


def make_encode_rows(row_format: str, head_dim: int, scale_rule: str = "norm", signs: bool = False) -> Any:
    """An inline encode_rows(rows, row_stride, mean, n_tokens, codes, codes_stride, scales, scale_stride,
    tables, scratch) of one head: any number of float32 rows -> codes and float16 scales.

    Strides in bytes. mean 0: none. `tables`: of the format's grid (0 for q8 and bf16). `scratch`:
    encode_scratch_bytes(head_dim) bytes. K and V are two calls; codes of V start behind those of K.
    """
    from ..cpu import vector_ops as v

    if row_format not in ROW_FORMATS:
        raise ValueError(f"no row format {row_format!r}: choose one of {', '.join(ROW_FORMATS)}")
    rotate_rows = make_rotate_rows(head_dim, signs)
    if row_format == "bf16":
        return _make_copy_rows(head_dim)
    if row_format == "q8":
        return _make_encode_bytes(head_dim, rotate_rows, make_put_scale())
    encode_rotated = make_encode_rotated(row_format, head_dim, scale_rule)

    @v.inline
    def encode_rows(
        rows: int,
        row_stride: int,
        mean: int,
        n_tokens: int,
        codes: int,
        codes_stride: int,
        scales: int,
        scale_stride: int,
        tables: int,
        scratch: int,
    ) -> None:
        for first in range(0, n_tokens, TILE_TOKENS):
            n = min(TILE_TOKENS, n_tokens - first)
            rotate_rows(rows + first * row_stride, row_stride, mean, n, scratch)
            target, scale = codes + first * codes_stride, scales + first * scale_stride
            encode_rotated(n, target, codes_stride, scale, scale_stride, tables, scratch)

    return encode_rows


def make_encode_rotated(row_format: str, head_dim: int, scale_rule: str) -> Any:
    """An inline encode_rotated(n_tokens, codes, codes_stride, scales, scale_stride, tables, scratch): up to
    16 rotated rows at the start of the scratch -> codes and scales; see make_encode_rows.
    """
    from ..cpu import vector_ops as v

    at = EncodeScratch(head_dim)
    at_codes, at_scores, at_scales = at.codes, at.scores, at.scales
    put_scale, normalise = make_put_scale(), make_normalise(head_dim)
    find_codes = make_find_codes(head_dim, *GRID_SIZES[ROW_FORMATS[row_format].grid or ""], scale_rule)
    n_codes, sixes = head_dim // 2, ROW_FORMATS[row_format].sixes

    @v.inline
    def pack_sixes(source: int, target: int) -> None:
        for i in range(n_codes // 4):
            low, high = v.get_u16(source + 4 * i), v.get_u16(source + 4 * i + 2)
            low = low & 63 | low >> 8 << 6
            word = low | (high & 63 | high >> 8 << 6) << 12
            v.put_u16(target + 3 * i, word)
            v.put_u8(target + 3 * i + 2, word >> 16)

    @v.inline
    def encode_rotated(
        n_tokens: int,
        codes: int,
        codes_stride: int,
        scales: int,
        scale_stride: int,
        tables: int,
        scratch: int,
    ) -> None:
        normalise(n_tokens, scratch, scratch + at_scales)
        find_codes(n_tokens, tables, scratch, scratch + at_codes, scratch + at_scores, scratch + at_scales)
        for i in range(n_tokens):
            source, target = scratch + at_codes + i * n_codes, codes + i * codes_stride
            if sixes:
                pack_sixes(source, target)
            else:
                for j in range(0, n_codes, 8):
                    v.put_i64(target + j, v.get_i64(source + j))
            put_scale(scales + i * scale_stride, v.get_f32(scratch + at_scales + i * 4))

    return encode_rotated


def _make_encode_bytes(head_dim: int, rotate_rows: Any, put_scale: Any) -> Any:
    from ..cpu import vector_ops as v

    @v.inline
    def encode_rows(
        rows: int,
        row_stride: int,
        mean: int,
        n_tokens: int,
        codes: int,
        codes_stride: int,
        scales: int,
        scale_stride: int,
        tables: int,
        scratch: int,
    ) -> None:
        for token in range(n_tokens):
            rotate_rows(rows + token * row_stride, row_stride, mean, 1, scratch)
            largest = v.zero()
            for i in range(0, head_dim * 4, 64):
                largest = v.vmax(v.vabs(v.load_f32(scratch + i)), largest)
            scale = v.hmax(largest) * np.float32(1 / 127)
            inverse = v.splat(np.float32(1) / scale if scale > np.float32(1e-30) else np.float32(0))
            for i in range(0, head_dim, 16):
                piece = v.mul(v.load_f32(scratch + i * 4), inverse)
                v.store_i8(codes + token * codes_stride + i, piece)
            put_scale(scales + token * scale_stride, scale)

    return encode_rows


def _make_copy_rows(head_dim: int) -> Any:
    from ..cpu import vector_ops as v

    put = v.PUT["f16"]

    @v.inline
    def encode_rows(
        rows: int,
        row_stride: int,
        mean: int,
        n_tokens: int,
        codes: int,
        codes_stride: int,
        scales: int,
        scale_stride: int,
        tables: int,
        scratch: int,
    ) -> None:
        for token in range(n_tokens):
            for i in range(0, head_dim, 16):
                v.store_bf16(
                    codes + token * codes_stride + i * 2, v.load_f32(rows + token * row_stride + i * 4)
                )
            put(scales + token * scale_stride, np.float32(1))

    return encode_rows


def make_decode_row(row_format: str, head_dim: int) -> Any:
    """An inline decode_row(out, codes, scale, tables): one row, float32 [D], in the domain it rests in.

    `scale` is a float32 value; `tables`: of the format's grid (0 for q8 and bf16).
    """
    from ..cpu.codeword_rows import make_decode

    grid = ROW_FORMATS[row_format].grid
    return make_decode(row_format, head_dim, GridTables(*GRID_SIZES[grid]) if grid else None)


def encode_rows_cpu(row_format: str, head_dim: int, scale_rule: str, signs: bool) -> Any:
    """Encodes float32 rows of one head. Threads share the tokens.

    Args: rows, row_stride, mean, n_tokens*, codes, codes_stride, scales, scale_stride, tables, scratch,
    scratch_stride.
    """
    from ..cpu import vector_ops as v

    encode_rows = make_encode_rows(row_format, head_dim, scale_rule, signs)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        rows, row_stride, mean = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        codes, codes_stride = v.get_i64(args + 32), v.get_i64(args + 40)
        scales, scale_stride = v.get_i64(args + 48), v.get_i64(args + 56)
        tables = v.get_i64(args + 64)
        scratch = v.get_i64(args + 72) + thread * v.get_i64(args + 80)
        first, last = v.share(v.get_i64(v.get_i64(args + 24)), thread, n_threads, 0)
        encode_rows(
            rows + first * row_stride,
            row_stride,
            mean,
            last - first,
            codes + first * codes_stride,
            codes_stride,
            scales + first * scale_stride,
            scale_stride,
            tables,
            scratch,
        )

    return kernel


def decode_rows_cpu(row_format: str, head_dim: int) -> Any:
    """Decodes rows into the domain they rest in. Threads share the rows.

    Args: out, out_stride, codes, codes_stride, scales, scale_stride, tables, n_rows*.
    """
    from ..cpu import vector_ops as v

    decode_row = make_decode_row(row_format, head_dim)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, out_stride = v.get_i64(args), v.get_i64(args + 8)
        codes, codes_stride = v.get_i64(args + 16), v.get_i64(args + 24)
        scales, scale_stride = v.get_i64(args + 32), v.get_i64(args + 40)
        tables = v.get_i64(args + 48)
        first, last = v.share(v.get_i64(v.get_i64(args + 56)), thread, n_threads, 0)
        for row in range(first, last):
            scale = v.get_f16(scales + row * scale_stride)
            decode_row(out + row * out_stride, codes + row * codes_stride, scale, tables)

    return kernel
