"""matmul of many rows on a GPU's tensor cores: factors as bfloat16, sums in float32; truth: matmul_bf16_ref.

A block multiplies a tile of tokens with 128 outputs, 32 columns a step. Copies of later steps run beside the
arithmetic. bfloat16 weights are copied as they are; others are read a step ahead into registers, and widened
into one of two buffers after the step's products. Per step a thread widens 16 weights.
"""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel, Work
from .device_layout import TENSOR_CORE_FORMATS, UNIT, device_layout
from .device_weights import make_load_half_unit, make_read_scale, make_widen_half_unit
from .matmul_cuda import make_finish

OUTPUTS = 128  # of a block
WARPS = 8
THREADS = WARPS * 32
STAGES = 4  # steps whose copies are under way or arrived
TOKEN_TILES = (16, 32, 64, 128)
PITCH = OUTPUTS + 4  # numbers between a token's sums in shared memory and the next one's
ROW_WORDS = UNIT // 2  # of a step's row in shared memory


def make_place(g: Any) -> Any:
    """place(row, piece): the word where a row's piece of 8 numbers lies; eight rows' lie in all banks."""

    @g.inline
    def place(row, piece):  # type: ignore[no-untyped-def]
        return g.int32(row * ROW_WORDS + ((piece ^ (row >> 1 & 3)) << 2))

    return place


def make_multiply_step(g: Any, n_down: int, n_across: int) -> Any:
    """multiply(sums, held_x, held_w, row, output): adds the products of 32 columns, for 16 n_down tokens from
    `row` on and 8 n_across outputs from `output` on.
    """
    place = make_place(g)
    n_fragments = 4 * n_down

    @g.inline
    def multiply(sums, held_x, held_w, row, output):  # type: ignore[no-untyped-def]
        lane = g.lane()
        x_row = row + (lane & 15)
        w_row = output + (lane & 7) + (lane >> 4 << 3)
        a = g.local_u32(n_fragments)
        for part in range(2):
            x_place = place(x_row, 2 * part + (lane >> 4))
            w_place = place(w_row, 2 * part + (lane >> 3 & 1))
            for m in range(n_down):
                a0, a1, a2, a3 = g.load_matrix_x4(held_x, x_place + m * 16 * ROW_WORDS)
                a[4 * m], a[4 * m + 1], a[4 * m + 2], a[4 * m + 3] = a0, a1, a2, a3
            for n in range(0, n_across, 2):
                b0, b1, b2, b3 = g.load_matrix_x4(held_w, w_place + n * 8 * ROW_WORDS)
                for m in range(n_down):
                    a0, a1, a2, a3 = a[4 * m], a[4 * m + 1], a[4 * m + 2], a[4 * m + 3]
                    i = (m * n_across + n) * 4
                    c0, c1, c2, c3 = sums[i], sums[i + 1], sums[i + 2], sums[i + 3]
                    c0, c1, c2, c3 = g.mma_m16n8k16_bf16(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3)
                    sums[i], sums[i + 1], sums[i + 2], sums[i + 3] = c0, c1, c2, c3
                    c0, c1, c2, c3 = sums[i + 4], sums[i + 5], sums[i + 6], sums[i + 7]
                    c0, c1, c2, c3 = g.mma_m16n8k16_bf16(a0, a1, a2, a3, b2, b3, c0, c1, c2, c3)
                    sums[i + 4], sums[i + 5], sums[i + 6], sums[i + 7] = c0, c1, c2, c3

    return multiply


def make_write_tile(g: Any, token_tile: int) -> Any:
    """write_tile(out, out_stride, held, n_present, first_output, n_outputs, bias, has_bias, mode): a block's
    sums, [token_tile, PITCH] in shared memory, become rows of `out`.
    """
    finish = make_finish(g)

    @g.inline
    def write_tile(  # type: ignore[no-untyped-def]
        out, out_stride, held, n_present, first_output, n_outputs, bias, has_bias, mode
    ):
        own = g.thread() & (OUTPUTS - 1)
        column = first_output + own
        if column < n_outputs:
            added = g.float32(0)
            if has_bias:
                added = bias[column]
            for token in range(g.thread() // OUTPUTS, min(token_tile, n_present), THREADS // OUTPUTS):
                finish(out, g.int64(token) * out_stride + column, held[token * PITCH + own] + added, mode)

    return write_tile


def matmul_bf16_cuda(g: Any, format_name: str, token_tile: int, grouped: bool) -> CudaKernel:
    """Multiplies `token_tile` rows at a time.

    `x`: bfloat16 [rows, n_cols] (round_activations_cuda); else as matmul_cuda, but fillers are rows of zeros.
    Columns in multiples of 32.
    Grid: x, tiles of tokens, so that blocks side by side in time share weights; y, blocks of 128 outputs.
    Raises: ValueError.
    """
    layout = device_layout(format_name)
    if format_name not in TENSOR_CORE_FORMATS:
        raise ValueError(f"no prefill matmul of {format_name} weights: use {', '.join(TENSOR_CORE_FORMATS)}")
    if token_tile not in TOKEN_TILES:
        raise ValueError(f"no prefill matmul over tiles of {token_tile} tokens: use {TOKEN_TILES}")
    copied = format_name == "BF16"
    bits, high_bits, n_scales, n_supers = layout.bits, layout.high_bits, layout.n_scales, layout.n_supers
    is_float = layout.is_float
    warps_down = 2 if token_tile >= 64 else 1
    warps_across = WARPS // warps_down
    n_down, n_across = token_tile // warps_down // 16, OUTPUTS // warps_across // 8
    n_sums = n_down * n_across * 4
    x_words, w_words = token_tile * ROW_WORDS, OUTPUTS * ROW_WORDS
    x_pieces = token_tile * 4
    x_copies = -(-x_pieces // THREADS)
    w_first = STAGES * x_words * 4
    w_buffers = STAGES if copied else 2
    ahead, waited, below = STAGES - 1, STAGES - 2, 8 * PITCH
    place, write_tile = make_place(g), make_write_tile(g, token_tile)
    multiply = make_multiply_step(g, n_down, n_across)
    load, widen = make_load_half_unit(g, format_name), make_widen_half_unit(g, format_name)
    read_scale = make_read_scale(g, format_name)

    @g.inline
    def find_x(sources, first, n_present, row_words, pack_row, gathered):  # type: ignore[no-untyped-def]
        """Where this thread's pieces of x begin, in pieces; -1 for those of no row."""
        for j in range(x_copies):
            i = g.int32(g.thread() + j * THREADS)
            row = g.int32(-1)
            if i >> 2 < n_present and i < x_pieces:
                row = g.int32(first + (i >> 2))
                if grouped:
                    held = g.int32(pack_row[row])
                    row = held if gathered or held < 0 else row
            sources[j] = g.int32(row * (row_words >> 2) + (i & 3)) if row >= 0 else g.int32(-1)

    @g.inline
    def copy_x(held, stage, x, sources, step):  # type: ignore[no-untyped-def]
        for j in range(x_copies):
            i = g.int32(g.thread() + j * THREADS)
            if i < x_pieces:
                target = g.int32(stage * x_words + place(i >> 2, i & 3))
                source = (g.int64(sources[j]) << 2) + step * ROW_WORDS
                g.copy_async_or_zero(held, target, x, source, sources[j] >= 0)

    @g.inline
    def copy_w(held, stage, w, n_outputs, row_words, step):  # type: ignore[no-untyped-def]
        for j in range(2):
            i = g.int32(g.thread() + j * THREADS)
            row, piece = i >> 2, i & 3
            target = g.int32(stage * w_words + place(row, piece))
            source = g.int32(row * row_words + piece * 4) + step * ROW_WORDS
            g.copy_async_or_zero(held, target, w, source, row < n_outputs)

    @g.inline
    def put(held, buffer, raw):  # type: ignore[no-untyped-def]
        row, half = g.thread() >> 1, g.thread() & 1
        for j in range(2):
            at = buffer * w_words + place(row, 2 * half + j)
            g.store_u32x4(held, at, raw[4 * j], raw[4 * j + 1], raw[4 * j + 2], raw[4 * j + 3])

    def kernel(  # type: ignore[no-untyped-def]
        out, out_stride, codes, high, scales, supers, n_outputs, n_cols, x, bias, has_bias, mode, n_rows,
        pack_expert, pack_row, gathered,
    ):  # fmt: skip
        first_token, first_output = g.block() * token_tile, g.block_y() * OUTPUTS
        n_present = g.int32(n_rows[0] - first_token)
        if n_present > 0:
            thread, lane, warp = g.thread(), g.lane(), g.thread() // 32
            held_x, held_w = g.dynamic_u32(0), g.dynamic_u32(w_first)
            n_steps = n_cols // UNIT
            row_words = n_cols // 2
            sources = g.local_i32(x_copies)
            find_x(sources, first_token, n_present, row_words, pack_row, gathered)
            own_row = g.int64(min(first_output + (0 if copied else thread >> 1), n_outputs - 1))
            if grouped:
                own_row += g.int64(pack_expert[g.block()]) * n_outputs
            own = own_row * n_steps
            codes, high = g.shifted(codes, own * bits), g.shifted(high, own * high_bits)
            scales, supers = g.shifted(scales, own * n_scales), g.shifted(supers, (own >> 3) * n_supers)
            half = thread & 1
            raw = g.local_u32(8)
            scale, offset = g.float32(0), g.float32(0)
            row = g.int32(warp // warps_across * n_down * 16)
            output = g.int32(warp % warps_across * n_across * 8)
            sums = g.local_f32(n_sums)
            for i in range(n_sums):
                sums[i] = g.float32(0)

            for step in range(ahead):
                if step < n_steps:
                    copy_x(held_x, step, x, sources, step)
                    if copied:
                        copy_w(held_w, step, codes, n_outputs - first_output, row_words, step)
                g.copy_async_commit()
            if not copied:
                load(raw, codes, high, 0, half)
                if not is_float:
                    scale, offset = read_scale(scales, supers, 0, half)
                widen(raw, half, scale, offset)
                put(held_w, 0, raw)
            for counted in range(n_steps):
                step = g.int32(counted)
                g.copy_async_wait(waited)
                g.sync_threads()
                later = g.int32(step + ahead)
                if later < n_steps:
                    copy_x(held_x, later % STAGES, x, sources, later)
                    if copied:
                        copy_w(held_w, later % STAGES, codes, n_outputs - first_output, row_words, later)
                g.copy_async_commit()
                if not copied:
                    unit = min(step + 1, n_steps - 1)
                    load(raw, codes, high, unit, half)
                    if not is_float:
                        scale, offset = read_scale(scales, supers, unit, half)
                own_x = g.shifted(held_x, step % STAGES * x_words)
                multiply(sums, own_x, g.shifted(held_w, step % w_buffers * w_words), row, output)
                if not copied:
                    widen(raw, half, scale, offset)
                    put(held_w, (step + 1) % 2, raw)

            g.copy_async_wait(0)
            g.sync_threads()
            held = g.dynamic_f32(0)
            for m in range(n_down):
                for n in range(n_across):
                    at = (row + m * 16 + (lane >> 2)) * PITCH + output + n * 8 + (lane & 3) * 2
                    i = (m * n_across + n) * 4
                    held[at], held[at + 1] = sums[i], sums[i + 1]
                    held[at + below], held[at + below + 1] = sums[i + 2], sums[i + 3]
            g.sync_threads()
            own_out = g.shifted(out, g.int64(first_token) * out_stride)
            write_tile(own_out, out_stride, held, n_present, first_output, n_outputs, bias, has_bias, mode)

    return CudaKernel(
        kernel,
        "f32* i32 u32* u32* u16* u16* i32 i32 u32* f32* i32 i32 i64* i32* i32* i32",
        THREADS,
        max(w_first + w_buffers * w_words * 4, token_tile * PITCH * 4),
        opcodes=("HMMA.16816.F32.BF16", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128"),
        work=Work(
            "256 columns of a block",
            OUTPUTS * layout.row_bytes(256) + token_tile * 512,
            2 * OUTPUTS * token_tile * 256,
        ),
    )
