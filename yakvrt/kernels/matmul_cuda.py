"""matmul of one to eight rows on a GPU, which reads the weights once; truth: matmul_ref.

Quantised weights meet activations of int8 (pack_activations.py), four products an instruction; others meet
float32. An H200 (132 SMs of 4 schedulers, 1.7 GHz, 4.8 TB/s) issues 6 instructions of a lane for every byte
that arrives. The columns' loop for one row of activations has 0.8 (Q8_0) to 3.7 (Q6_K) per byte of weights,
halves 1.6, and waits for memory. For eight rows it has 3.8 (Q8_0), 5.8 (halves), 8.1 (Q6_K) to 8.8 (Q4_K):
4-bit weights then wait for arithmetic. Counted in the machine code for sm_90a.
"""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel, Work
from .device_layout import UNIT, device_layout
from .device_weights import make_read_codes, make_read_scale
from .matmul import ADD, GATE

WARPS = 4
THREADS = WARPS * 32
ROWS_AT_ONCE = 4  # of weights, in a warp: as many 16-byte loads are under way in every lane
DECODE_TOKENS = (1, 2, 4, 8)
SPLITS = (1, 2, 4)
SIGNATURE = "f32* i32 u32* u32* u16* u16* i32 i32 {x}* f32* f32* i32 i32 i64* i32* i32* i32"


def make_finish(g: Any) -> Any:
    """finish(out, at, product, mode): out[at] becomes the product, or more by it, or gated by it."""
    minus_log2_e = -1.4426950408889634

    @g.inline
    def finish(out, at, product, mode):  # type: ignore[no-untyped-def]
        if mode == ADD:
            product += out[at]
        elif mode == GATE:
            gate = out[at]
            product *= gate * g.reciprocal(g.float32(1) + g.exp2(gate * g.float32(minus_log2_e)))
        out[at] = product

    return finish


def make_pick_rows(g: Any, n_tokens: int, grouped: bool) -> Any:
    """pick_rows(rows, first, n_present, pack_row, gathered, thread): which rows of x the block's places take;
    ends in a barrier.
    """

    @g.inline
    def pick_rows(rows, first, n_present, pack_row, gathered, thread):  # type: ignore[no-untyped-def]
        if thread < n_tokens:
            row = g.int32(first + min(thread, n_present - 1))
            if grouped and gathered:
                row = max(pack_row[first + thread], 0)
            rows[thread] = g.int32(row)
        g.sync_threads()

    return pick_rows


def matmul_cuda(g: Any, format_name: str, n_tokens: int, split: int, grouped: bool) -> CudaKernel:
    """Multiplies `n_tokens` rows at a time; `split` warps share the columns of four rows of weights.

    `codes`, `high`, `scales`, `supers`: the planes (device_layout.py); n_outputs rows of n_cols. `x`: float32
    [rows, n_cols] for weights of 16 or 32 bits, else int8 codes with `x_terms` (quantize_activations_cuda).
    `bias` is read where has_bias is not 0. Modes: matmul.py.
    Grouped: weights are a stack of experts' matrices, places come in packs of n_tokens, pack i goes to expert
    pack_expert[i] (moe_cuda.py). Place p takes row pack_row[p] of x where `gathered` is not 0, else row p;
    n_rows counts places. Fillers, whose pack_row is -1, are computed from some row of x.
    Grid: x, blocks of 16 / split outputs; y, packs of n_tokens rows.
    Differs: a row's sums do not depend on n_tokens, but on split.
    Raises: ValueError.
    """
    layout = device_layout(format_name)
    if n_tokens not in DECODE_TOKENS:
        raise ValueError(f"no decode matmul of {n_tokens} rows at once: use {DECODE_TOKENS}")
    if split not in SPLITS:
        raise ValueError(f"no decode matmul whose columns {split} warps share: use {SPLITS}")
    add_columns = (_add_float_columns if layout.is_float else _add_coded_columns)(g, format_name, n_tokens)
    pick_rows = make_pick_rows(g, n_tokens, grouped)
    finish = make_finish(g)
    groups, cells = WARPS // split, ROWS_AT_ONCE * n_tokens
    n_held = WARPS * cells

    def kernel(  # type: ignore[no-untyped-def]
        out,
        out_stride,
        codes,
        high,
        scales,
        supers,
        n_outputs,
        n_cols,
        x,
        x_terms,
        bias,
        has_bias,
        mode,
        n_rows,
        pack_expert,
        pack_row,
        gathered,
    ):
        first_token = g.block_y() * n_tokens
        n_present = g.int32(n_rows[0] - first_token)
        if n_present > 0:
            thread, lane, warp = g.thread(), g.lane(), g.thread() // 32
            first_row = min((g.block() * groups + warp // split) * ROWS_AT_ONCE, n_outputs - 1)
            sums = g.local_f32(cells)
            for i in range(cells):
                sums[i] = g.float32(0)
            start, step = g.int32(warp % split * 32 + lane), split * 32
            planes = (codes, high, scales, supers)
            rows = g.shared_i32(n_tokens)
            pick_rows(rows, first_token, n_present, pack_row, gathered, thread)
            base_row = g.int64(first_row)
            if grouped:
                base_row += g.int64(pack_expert[g.block_y()]) * n_outputs
            last = g.int32(n_outputs - 1 - first_row)
            add_columns(sums, planes, base_row, last, n_cols, x, x_terms, rows, start, step)
            held = g.shared_f32(n_held)
            for i in range(cells):
                total = g.warp_sum(sums[i])
                if lane == 0:
                    held[warp * cells + i] = total
            g.sync_threads()
            if thread < groups * cells:
                group, cell = thread // cells, thread % cells
                row = (g.block() * groups + group) * ROWS_AT_ONCE + cell // n_tokens
                token = cell % n_tokens
                if row < n_outputs and token < n_present:
                    product = g.float32(0)
                    for part in range(split):
                        product += held[(group * split + part) * cells + cell]
                    if has_bias:
                        product += bias[row]
                    finish(out, g.int64(first_token + token) * out_stride + row, product, mode)

    return CudaKernel(
        kernel,
        SIGNATURE.format(x="f32" if layout.is_float else "u32"),
        THREADS,
        opcodes=("LDG.E.128.CONSTANT", "FFMA" if layout.is_float else "IDP.4A.S8.S8"),
        work=Work("256 weights", layout.row_bytes(256), 2 * n_tokens * 256),
    )


def _add_coded_columns(g: Any, format_name: str, n_tokens: int) -> Any:
    layout = device_layout(format_name)
    read_codes, read_scale = make_read_codes(g, format_name), make_read_scale(g, format_name)
    bits, high_bits, n_scales, n_supers = layout.bits, layout.high_bits, layout.n_scales, layout.n_supers
    halves_differ = high_bits > 0
    zero = 0 if halves_differ else layout.zero  # read_codes subtracts that of Q6_K
    has_offset = layout.has_offset or zero != 0
    n_words, n_factors = 8 * ROWS_AT_ONCE, 2 * ROWS_AT_ONCE

    @g.inline
    def add_columns(  # type: ignore[no-untyped-def]
        sums, planes, base_row, last, n_cols, x, x_terms, rows, start, step
    ):
        codes, high, scales, supers = planes
        units = n_cols // UNIT
        base = base_row * units
        codes, high = g.shifted(codes, base * bits), g.shifted(high, base * high_bits)
        scales, supers = g.shifted(scales, base * n_scales), g.shifted(supers, (base >> 3) * n_supers)
        words, factors = g.local_u32(n_words), g.local_f32(n_factors)
        x_words = g.local_u32(8)
        for unit in range(start, units, step):
            for r in range(ROWS_AT_ONCE):
                row = g.int32(min(r, last) * units)
                own_high = g.shifted(high, row * high_bits)
                read_codes(words, 8 * r, g.shifted(codes, row * bits), own_high, unit)
                own_scales = g.shifted(scales, row * n_scales)
                own_supers = g.shifted(supers, (row >> 3) * n_supers)
                scale, offset = read_scale(own_scales, own_supers, unit, 0)
                if halves_differ:
                    offset, _ = read_scale(own_scales, own_supers, unit, 1)
                elif zero:
                    offset = scale * g.float32(-zero)
                factors[2 * r], factors[2 * r + 1] = scale, offset
            for t in range(n_tokens):
                at = g.int32(rows[t] * units + unit)
                a, b, c, d = g.load_constant_u32x4(x, at * 8)
                x_words[0], x_words[1], x_words[2], x_words[3] = a, b, c, d
                a, b, c, d = g.load_constant_u32x4(x, at * 8 + 4)
                x_words[4], x_words[5], x_words[6], x_words[7] = a, b, c, d
                x_scale = x_terms[at * 2]
                x_sum = x_terms[at * 2 + 1]
                for r in range(ROWS_AT_ONCE):
                    low, top = g.int32(0), g.int32(0)
                    for i in range(4):
                        low = g.dot4_i8(words[8 * r + i], x_words[i], low)
                    if not halves_differ:
                        top = low
                    for i in range(4, 8):
                        top = g.dot4_i8(words[8 * r + i], x_words[i], top)
                    total = sums[r * n_tokens + t]
                    if halves_differ:
                        both = factors[2 * r] * g.float32(low) + factors[2 * r + 1] * g.float32(top)
                        total = g.fma(both, x_scale, total)
                    else:
                        total = g.fma(factors[2 * r] * g.float32(top), x_scale, total)
                        if has_offset:
                            total = g.fma(factors[2 * r + 1], x_sum, total)
                    sums[r * n_tokens + t] = total

    return add_columns


def _add_float_columns(g: Any, format_name: str, n_tokens: int) -> Any:
    n_piece_words = device_layout(format_name).bits // 4  # of 8 columns
    n_words = n_piece_words * ROWS_AT_ONCE
    low, high_part = (g.low_f16, g.high_f16) if format_name == "F16" else (g.low_bf16, g.high_bf16)

    @g.inline
    def add_exact(total, words, at, numbers):  # type: ignore[no-untyped-def]
        for i in range(8):
            total = g.fma(g.f32_from_bits(words[at + i]), numbers[i], total)
        return total

    @g.inline
    def add_halves(total, words, at, numbers):  # type: ignore[no-untyped-def]
        for i in range(4):
            word = words[at + i]
            total = g.fma(low(word), numbers[2 * i], total)
            total = g.fma(high_part(word), numbers[2 * i + 1], total)
        return total

    add_piece = add_exact if format_name == "F32" else add_halves

    @g.inline
    def add_columns(  # type: ignore[no-untyped-def]
        sums, planes, base_row, last, n_cols, x, x_terms, rows, start, step
    ):
        codes = planes[0]
        pieces = n_cols // 8
        codes = g.shifted(codes, base_row * pieces * n_piece_words)
        words, numbers = g.local_u32(n_words), g.local_f32(8)
        for piece in range(start, pieces, step):
            for r in range(ROWS_AT_ONCE):
                at = g.int32((min(r, last) * pieces + piece) * n_piece_words)
                for i in range(0, n_piece_words, 4):
                    a, b, c, d = g.load_constant_u32x4(codes, at + i)
                    j = r * n_piece_words + i
                    words[j], words[j + 1], words[j + 2], words[j + 3] = a, b, c, d
            for t in range(n_tokens):
                at = g.int32((rows[t] * pieces + piece) * 8)
                for i in range(0, 8, 4):
                    fa, fb, fc, fd = g.load_constant_f32x4(x, at + i)
                    numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3] = fa, fb, fc, fd
                for r in range(ROWS_AT_ONCE):
                    k = r * n_tokens + t
                    sums[k] = add_piece(sums[k], words, r * n_piece_words, numbers)

    return add_columns
