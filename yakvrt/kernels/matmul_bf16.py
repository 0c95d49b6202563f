"""matmul for prompts: weights and activations as bfloat16, sums in float32. A thread widens a slice of two
weight tiles at a time and multiplies it with all tokens, on matrix registers or by dot products of pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .matmul import matmul_ref
from .pack_size import TILE_PACK
from .tile_layout import BLOCK, LAYOUTS, ROWS

TILES_AT_ONCE = 2  # times two packs of tokens: four matrix registers of sums, or 24 vectors
WIDE_COLUMNS = 2048  # of a slice, whose weights stay in the second-level cache
BLOCK_BYTES = 2 * BLOCK * ROWS  # 32 columns of a weight tile as bfloat16


def matmul_bf16_ref(
    weight: np.ndarray, x: np.ndarray, bias: np.ndarray | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """matmul_ref of factors rounded to bfloat16."""
    from ml_dtypes import bfloat16

    return matmul_ref(weight.astype(bfloat16), x.astype(bfloat16), bias, out)


def widened_bytes(n_cols: int, gated: bool) -> int:
    """Scratch of a thread."""
    return TILES_AT_ONCE * max(n_cols if gated else 0, WIDE_COLUMNS) * ROWS * 2


def matmul_bf16_cpu(format_name: str, pack_rows: int, gated: bool) -> Any:
    """Threads draw pairs of tiles from the shared counter.

    Packs are of TILE_PACK tokens, for matrix registers, or of PREFILL_PACK, for AVX512-BF16.
    Args: as matmul_cpu; then scratch, scratch_stride (widened_bytes). The mode is GATE if `gated`, else WRITE
    or ADD. Columns in multiples of 32.
    """
    from ..cpu import amx_matmul, bf16_matmul
    from ..cpu import vector_ops as v
    from ..cpu.tile_widen import make_widen_tile

    layout = LAYOUTS[format_name]
    widen = make_widen_tile(format_name)
    unit = amx_matmul if pack_rows == TILE_PACK else bf16_matmul
    multiply_pack, multiply_packs = (unit.make_multiply_tiles(TILES_AT_ONCE, n, gated) for n in (1, 2))
    configure_tiles, release_tiles = unit.configure_tiles, unit.release_tiles
    unit_cols = max(layout.column_multiple, BLOCK)
    unit_bytes = layout.tile_bytes(unit_cols)
    at_once, block, block_bytes, most_cols = TILES_AT_ONCE, BLOCK, BLOCK_BYTES, WIDE_COLUMNS
    pack_block_bytes = 2 * BLOCK * pack_rows

    @v.inline
    def add_bias(out: int, out_stride: int, n_rows: int, bias: int) -> None:
        for row in range(n_rows):
            for j in range(0, at_once * 64, 64):
                cell = out + row * out_stride + j
                v.store_f32(cell, v.add(v.load_f32(cell), v.load_f32(bias + j)))

    @v.inline
    def multiply(
        tiles: int,
        tile_bytes: int,
        n_cols: int,
        x: int,
        n_packs: int,
        out: int,
        out_stride: int,
        wide: int,
        bias: int,
        accumulate: int,
    ) -> None:
        """A pair of tiles times packs, by slices of columns (see WIDE_COLUMNS), unless the product is gated:
        `out` holds the gate and has no place for a part of a sum.
        """
        pack_stride = n_cols // block * pack_block_bytes
        n_units = n_cols // unit_cols
        n_slices = 1 if gated else (n_cols + most_cols - 1) // most_cols
        for part in range(n_slices):
            first, last = n_units * part // n_slices, n_units * (part + 1) // n_slices
            cols = (last - first) * unit_cols
            n_blocks = cols // block
            for t in range(at_once):
                widen(tiles + t * tile_bytes + first * unit_bytes, cols, wide + t * n_blocks * block_bytes)
            own_x = x + first * (unit_cols // block) * pack_block_bytes
            add = accumulate or part
            for pack in range(0, n_packs - 1, 2):
                own_out = out + pack * pack_rows * out_stride
                factors = own_x + pack * pack_stride
                multiply_packs(wide, factors, pack_stride, n_blocks, own_out, out_stride, bias, add)
            if n_packs % 2:
                own_out = out + (n_packs - 1) * pack_rows * out_stride
                factors = own_x + (n_packs - 1) * pack_stride
                multiply_pack(wide, factors, pack_stride, n_blocks, own_out, out_stride, bias, add)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, out_stride = v.get_i64(args), v.get_i64(args + 8)
        weights, n_tiles, n_cols = v.get_i64(args + 16), v.get_i64(args + 24), v.get_i64(args + 32)
        x, n_packs = v.get_i64(args + 40), (v.get_i64(v.get_i64(args + 56)) + pack_rows - 1) // pack_rows
        bias, accumulate, experts = v.get_i64(args + 64), v.get_i64(args + 72), v.get_i64(args + 80)
        wide = v.get_i64(args + 104) + thread * v.get_i64(args + 112)
        tile_bytes = n_cols // unit_cols * unit_bytes
        pack_bytes = n_cols // block * pack_block_bytes
        configure_tiles()
        first = v.atomic_add(counter, at_once)
        while first < n_tiles:
            own_bias = bias + first * 64 if bias else 0
            pack = 0
            while pack < n_packs:  # a run of packs with the same expert
                expert, end = 0, n_packs
                if experts:
                    expert, end = v.get_i64(experts + pack * 8), pack + 1
                    while end < n_packs and v.get_i64(experts + end * 8) == expert:
                        end += 1
                target = out + pack * pack_rows * out_stride + first * 64
                if own_bias and accumulate and not gated:
                    add_bias(target, out_stride, (end - pack) * pack_rows, own_bias)
                tiles = weights + (expert * n_tiles + first) * tile_bytes
                factors = x + pack * pack_bytes
                multiply(
                    tiles,
                    tile_bytes,
                    n_cols,
                    factors,
                    end - pack,
                    target,
                    out_stride,
                    wide,
                    own_bias,
                    accumulate,
                )
                pack = end
            first = v.atomic_add(counter, at_once)
        release_tiles()

    return kernel
