"""out[b] = W x[b] + bias, or added to out[b], or gated by it: weights in tiles, activations packed by
pack_activations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .pack_activations import CODE_BYTES, TERM_BYTES
from .pack_size import DECODE_PACKS, PREFILL_PACK
from .tile_layout import LAYOUTS

# what becomes of the product
WRITE = 0  # out = product
ADD = 1  # out += product
GATE = 2  # out = silu(out) * product

NEXT = slice(15, 18)  # of matmul_cpu's arguments: the weights of the matmul that follows


def matmul_ref(
    weight: np.ndarray, x: np.ndarray, bias: np.ndarray | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """The product in float64, added to `out` when given.

    Shapes: weight [rows, cols], x [B, cols], bias [rows], out [B, rows].
    """
    product = x.astype(np.float64) @ weight.astype(np.float64).T
    if bias is not None:
        product = product + bias
    return product if out is None else out + product


def tile_shape(wide: bool, n_tokens: int) -> int:
    """Tiles per inner loop: two where 32 vector registers hold the accumulators of a prompt's pack."""
    return 2 if wide and n_tokens == PREFILL_PACK else 1


def matmul_cpu(format_name: str, n_tokens: int) -> Any:
    """Multiplies tiles with packs of `n_tokens` tokens.

    Args: out, out_stride, weights, n_tiles, n_cols, x, scales, n_rows*, bias, mode, experts, x_copy,
    scales_copy (see rms_norm_cpu), wide, wide_bytes (unused), next_weights, next_n_tiles, next_tile_bytes.
    Few tokens (DECODE_PACKS): threads share the tiles evenly, so that what one prefetches is its own and
    sibling matmuls may run without a barrier between them. More: threads draw tiles from the shared counter.
    `experts` (int64 per pack, or 0) names the matrix of a stack, each of n_tiles tiles, that a pack
    multiplies.
    """
    from ..cpu import vector_ops as v
    from ..cpu.simd import FEATURES
    from ..cpu.tile_matmul import FAR_AHEAD, PREFETCH_AHEAD, make_tile_matmul

    layout = LAYOUTS[format_name]
    step = tile_shape(FEATURES.avx512, n_tokens)
    waits_for_memory = n_tokens in DECODE_PACKS
    multiply = make_tile_matmul(format_name, step, n_tokens, prefetch=waits_for_memory)
    unit_cols, unit_bytes = layout.column_multiple, layout.tile_bytes(layout.column_multiple)
    form = "f32" if layout.is_float else "int8"
    code_bytes, term_bytes = CODE_BYTES[form], TERM_BYTES[form]
    gate, near, far = GATE, PREFETCH_AHEAD, FAR_AHEAD

    @v.inline
    def apply_silu(out: int, out_stride: int, n_rows: int) -> None:
        """To n_rows of what `out` holds; asks for the next pack's."""
        for row in range(n_rows):
            for j in range(0, step * 64, 64):
                cell = out + row * out_stride + j
                v.store_f32(cell, v.silu(v.load_f32(cell)))
                v.prefetch(cell + n_tokens * out_stride)

    @v.inline
    def skip_to_next(thread: int, n_threads: int, args: int, end: int) -> int:
        """Bytes from `end` to this thread's tiles of the next matmul; 0 where there is none."""
        weights, n_tiles, tile_bytes = v.get_i64(args + 120), v.get_i64(args + 128), v.get_i64(args + 136)
        if weights == 0:
            return 0
        return weights + v.share(n_tiles, thread, n_threads, 0)[0] * tile_bytes - end

    @v.inline
    def bytes_ahead(tile: int, last: int, tile_bytes: int, skip: int) -> int:
        """From a tile to what is asked for meanwhile: one of the thread's own, or of its next matmul."""
        if tile_bytes > far:
            return near
        n_ahead = (near + tile_bytes - 1) // tile_bytes
        return n_ahead * tile_bytes + (skip if tile + n_ahead >= last else 0)

    @v.inline
    def multiply_tiles(thread: int, args: int, first: int, last: int, skip: int) -> None:
        """Tiles first .. last-1 with all packs."""
        out, out_stride = v.get_i64(args), v.get_i64(args + 8)
        weights, n_tiles, n_cols = v.get_i64(args + 16), v.get_i64(args + 24), v.get_i64(args + 32)
        x = v.get_i64(args + 40) + thread * v.get_i64(args + 88)
        scales = v.get_i64(args + 48) + thread * v.get_i64(args + 96)
        n_rows = v.get_i64(v.get_i64(args + 56))
        n_packs = (n_rows + n_tokens - 1) // n_tokens
        bias, mode, experts = v.get_i64(args + 64), v.get_i64(args + 72), v.get_i64(args + 80)
        tile_bytes = n_cols // unit_cols * unit_bytes
        pack_codes, pack_scales = n_cols * code_bytes * n_tokens, n_cols // 32 * term_bytes * n_tokens
        for tile in range(first, last, step):
            for pack in range(n_packs):
                expert = v.get_i64(experts + pack * 8) if experts else 0
                target = out + pack * n_tokens * out_stride + tile * 64
                if mode == gate:
                    apply_silu(target, out_stride, min(n_tokens, n_rows - pack * n_tokens))
                multiply(
                    weights + (expert * n_tiles + tile) * tile_bytes,
                    n_cols,
                    x + pack * pack_codes,
                    scales + pack * pack_scales,
                    target,
                    out_stride,
                    bias + tile * 64 if bias else 0,
                    mode,
                    bytes_ahead(tile, last, tile_bytes, skip) if waits_for_memory else 0,
                )

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        n_tiles = v.get_i64(args + 24)
        if waits_for_memory:
            first, last = v.share(n_tiles, thread, n_threads, 0)
            end = v.get_i64(args + 16) + last * (v.get_i64(args + 32) // unit_cols * unit_bytes)
            multiply_tiles(thread, args, first, last, skip_to_next(thread, n_threads, args, end))
            return
        first = v.atomic_add(counter, step)
        while first < n_tiles:
            multiply_tiles(thread, args, first, min(first + step, n_tiles), 0)
            first = v.atomic_add(counter, step)

    return kernel
