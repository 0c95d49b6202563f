"""Keys as what their selector codes leave of them.

Scoring takes a key to be its estimate: points of the rounded grid that its selector codes stand for, times
its float16 scale. A row of format "r3" holds the rest of the rotated, centred key as 3-bit codes with a scale
of its own. The logit of a query is the one that scoring found plus its dot product with the rest, so that
whoever has the weights of a step need not read selector codes again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .higgs_encode import EncodeScratch, encode_rotated_ref, make_rotate_rows
from .higgs_layout import SELECTORS, TILE_TOKENS, rounded_grid
from .higgs_rows import make_encode_rotated, pack_sixes_ref
from .higgs_selector import decode_selector_ref
from .rotate import rotation


def estimate_ref(
    kind: str, blocks: np.ndarray, n: int, head_dim: int, grid: np.ndarray, mean_grid: np.ndarray | None
) -> np.ndarray:
    """What scoring takes the keys to be, rotated and centred, float64.

    Shapes: blocks uint8 [B, bytes] -> [n, D].
    """
    rounded_mean = None if mean_grid is None else rounded_grid(mean_grid)
    return decode_selector_ref(kind, blocks, n, head_dim, rounded_grid(grid), rounded_mean)


def encode_residuals_ref(
    rows: np.ndarray, estimates: np.ndarray, grid: np.ndarray, mean: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Shapes: rows [n, D], estimates [n, D], mean [D] -> uint8 [n, 3 D / 8], scales float16 [n]."""
    centred = rows.astype(np.float64) - (0 if mean is None else mean)
    rotated = centred @ rotation(rows.shape[1]).T.astype(np.float64)
    codes, scales = encode_rotated_ref(rotated - estimates, grid)
    return pack_sixes_ref(codes), scales


def make_estimate(kind: str, head_dim: int) -> Any:
    """An inline estimate(out, block, token, tables, mean_tables): the estimate of one of a block's 64 keys,
    float32 [D]. Tables as in make_encode_selector.
    """
    from ..cpu import vector_ops as v
    from .higgs_layout import GridTables

    selector = SELECTORS[kind]
    dim, tile_bytes, scales_offset = selector.dim, selector.tile_bytes(head_dim), selector.scales(head_dim)
    points, step_at = GridTables(dim, 256).words8, GridTables(dim, 256).step
    has_means, mean_points, mean_step_at = (
        bool(selector.mean_grid),
        GridTables(2, 256).words8,
        GridTables(2, 256).step,
    )
    means_offset, mean_scales_offset = selector.mean_codes(head_dim), selector.mean_scales(head_dim)
    wide = dim == 8

    @v.inline
    def widen(points: int, factor: float) -> Any:
        """16 bytes -> coordinates."""
        return v.mul(v.sub(v.load_u8(points), v.splat(np.float32(127.5))), v.splat(factor))

    @v.inline
    def estimate(out: int, block: int, token: int, tables: int, mean_tables: int) -> None:
        codes = block + token // TILE_TOKENS * tile_bytes + token % TILE_TOKENS * 4
        factor = v.get_f16(block + scales_offset + token * 2) * v.get_f32(tables + step_at)
        for i in range(0, head_dim, 16):
            target = out + i * 4  # holds the bytes of points first
            for j in range(0, 16, dim):
                s = (i + j) // dim
                point = tables + points + v.get_u8(codes + s // 4 * 64 + s % 4) * dim
                if wide:
                    v.put_i64(target + j, v.get_i64(point))
                else:
                    v.put_i32(target + j, v.get_i32(point))
            found = widen(target, factor)
            if has_means:
                r = token // 8
                mean_codes = block + means_offset + i * 4 + r * 8
                mean_scale = v.get_f16(block + mean_scales_offset + r * 2)
                for j in range(8):
                    v.put_u16(
                        target + 2 * j, v.get_u16(mean_tables + mean_points + v.get_u8(mean_codes + j) * 4)
                    )
                found = v.add(found, widen(target, mean_scale * v.get_f32(mean_tables + mean_step_at)))
            v.store_f32(target, found)

    return estimate


def make_encode_residuals(kind: str, head_dim: int) -> Any:
    """An inline encode_residuals(rows, row_stride, mean, block, codes, codes_stride, scales, scale_stride,
    tables, selector_tables, mean_tables, scratch): the 64 keys of a block, whose selector codes are there.

    Other arguments as in make_encode_rows.
    """
    from ..cpu import vector_ops as v

    rotate_rows, estimate = make_rotate_rows(head_dim, False), make_estimate(kind, head_dim)
    encode_rotated = make_encode_rotated("r3", head_dim, "norm")
    at_spare, row_floats = EncodeScratch(head_dim).spare, head_dim * 4

    @v.inline
    def encode_residuals(
        rows: int,
        row_stride: int,
        mean: int,
        block: int,
        codes: int,
        codes_stride: int,
        scales: int,
        scale_stride: int,
        tables: int,
        selector_tables: int,
        mean_tables: int,
        scratch: int,
    ) -> None:
        spare = scratch + at_spare
        for first in range(0, 64, TILE_TOKENS):
            rotate_rows(rows + first * row_stride, row_stride, mean, TILE_TOKENS, scratch)
            for i in range(TILE_TOKENS):
                estimate(spare, block, first + i, selector_tables, mean_tables)
                for j in range(0, row_floats, 64):
                    row = scratch + i * row_floats + j
                    v.store_f32(row, v.sub(v.load_f32(row), v.load_f32(spare + j)))
            target, scale = codes + first * codes_stride, scales + first * scale_stride
            encode_rotated(TILE_TOKENS, target, codes_stride, scale, scale_stride, tables, scratch)

    return encode_residuals
