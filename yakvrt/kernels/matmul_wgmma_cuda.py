"""matmul of many rows by wgmma, the tensor core products of sm_90a: factors as bfloat16, sums in float32;
truth: matmul_bf16_ref.

Two groups of four warps multiply 64 outputs each with a tile of tokens, 64 columns a step. Both factors lie
in shared memory, swizzled (activation_tiles.py). The copy engine brings activations, one run of bytes a step,
and counts them on a barrier of the stage. The threads copy bfloat16 weights; others they widen while the
tensor cores multiply the step before, from registers that they filled a step earlier. The next products are
asked for while the last ones still run, so that the tensor cores have no gap.

An H200 takes 1024 clocks for a step's products of 256 tokens. The loop has 202 (BF16) to 345 (Q6_K)
instructions for sm_90a: 8 warps on 4 schedulers need 404 to 690 clocks to issue them. Counted, not measured.
"""

from __future__ import annotations

from typing import Any

from .activation_tiles import ROW_WORDS, TILE_COLUMNS, TILE_ROWS, TILE_WORDS, make_swizzled
from .cuda_kernel import CudaKernel, Work
from .device_layout import TENSOR_CORE_FORMATS, UNIT, device_layout
from .device_weights import make_load_half_unit, make_read_scale, make_widen_half_unit
from .matmul_bf16_cuda import OUTPUTS, PITCH, THREADS, make_write_tile

ARCHITECTURE = "sm_90a"
STAGE_BITS = 2
STAGES = 1 << STAGE_BITS  # steps whose factors are on their way, have come, or are being read
LAST_STAGE = STAGES - 1
AHEAD = STAGES - 2  # steps that are copied before a step's products, while those of the step before run
TOKEN_TILES = (128, 256)
# of a matrix descriptor: 128-byte swizzle, 1024 bytes from 8 rows to the next; the other offset is not used
SWIZZLED_ROWS = 1 << 62 | 1024 // 16 << 32 | 1 << 16


def make_multiply_step(g: Any, token_tile: int) -> Any:
    """multiply(sums, w, x): adds the products of 64 columns, and leaves them under way. w and x: addresses of
    the group's 64 rows of weights and of the tokens, in 16 bytes.
    """
    mma = {128: g.warpgroup_mma_n128, 256: g.warpgroup_mma_n256}[token_tile]

    @g.inline
    def multiply(sums, w, x):  # type: ignore[no-untyped-def]
        g.warpgroup_fence()
        for k in range(0, 8, 2):  # 16 columns are 32 bytes of the swizzled row
            mma(sums, g.uint64(g.int64(w + k) + SWIZZLED_ROWS), g.uint64(g.int64(x + k) + SWIZZLED_ROWS))
        g.warpgroup_commit()

    return multiply


def matmul_wgmma_cuda(g: Any, format_name: str, token_tile: int) -> CudaKernel:
    """Multiplies `token_tile` rows at a time; arguments as matmul_cuda's.

    `x`: the tiles of round_tiles_cuda. Columns in multiples of 32.
    Grid: x, tiles of tokens, so that blocks side by side in time share weights; y, blocks of 128 outputs.
    Differs: not for experts, whose packs are small and gather rows that would have to be copied into tiles.
    Raises: ValueError.
    """
    layout = device_layout(format_name)
    if format_name not in TENSOR_CORE_FORMATS:
        raise ValueError(f"no prefill matmul of {format_name} weights: use {', '.join(TENSOR_CORE_FORMATS)}")
    if token_tile not in TOKEN_TILES:
        raise ValueError(f"no wgmma matmul over tiles of {token_tile} tokens: use {TOKEN_TILES}")
    copied, is_float = format_name == "BF16", layout.is_float
    bits, high_bits, n_scales, n_supers = layout.bits, layout.high_bits, layout.n_scales, layout.n_supers
    fills_up = layout.column_multiple % TILE_COLUMNS != 0  # the last step may have half of its columns
    n_sums, n_across = token_tile // 2, token_tile // 8
    x_words, w_words = token_tile * ROW_WORDS, OUTPUTS * ROW_WORDS
    x_bytes = x_words * 4
    w_first = STAGES * x_bytes
    barriers_first = w_first + STAGES * w_words * 4
    waited = AHEAD - 1
    below, beside = 8, PITCH  # an accumulator's neighbours in a token's sums and in the next token's
    swizzled, multiply, write_tile = (
        make_swizzled(g),
        make_multiply_step(g, token_tile),
        make_write_tile(g, token_tile),
    )
    load, widen = make_load_half_unit(g, format_name), make_widen_half_unit(g, format_name)
    read_scale = make_read_scale(g, format_name)

    @g.inline
    def copy_x(held_x, full, x, first_token, n_steps, step):  # type: ignore[no-untyped-def]
        if step < n_steps and g.thread() == 0:
            tile = g.int64(first_token // TILE_ROWS) * n_steps + step
            source = tile * TILE_WORDS + first_token % TILE_ROWS * ROW_WORDS
            stage = step & LAST_STAGE
            g.barrier_expect_bytes(full, stage, x_bytes)
            g.copy_bulk(held_x, stage * x_words, x, source, x_bytes, full, stage)

    @g.inline
    def copy_w(held_w, w, n_outputs, n_cols, step):  # type: ignore[no-untyped-def]
        for j in range(OUTPUTS * 8 // THREADS):
            i = g.int32(g.thread() + j * THREADS)
            row, piece = i >> 3, i & 7
            column = step * TILE_COLUMNS + piece * 8
            target = (step & LAST_STAGE) * w_words + swizzled(row, piece)
            source = g.int64(row) * (n_cols >> 1) + (column >> 1)
            g.copy_async_or_zero(held_w, target, w, source, row < n_outputs and column < n_cols)
        g.copy_async_commit()

    @g.inline
    def read_unit(first, second, factors, planes, n_units, step):  # type: ignore[no-untyped-def]
        """What both halves of this thread's 32 columns are made of, and the scale and offset of each."""
        codes, high, scales, supers = planes
        unit = g.int32(min(step * 2 + (g.thread() & 1), n_units - 1))
        load(first, codes, high, unit, 0)
        load(second, codes, high, unit, 1)
        if not is_float:
            factors[0], factors[1] = read_scale(scales, supers, unit, 0)
            factors[2], factors[3] = read_scale(scales, supers, unit, 1)

    @g.inline
    def put_half(held_w, step, piece, raw):  # type: ignore[no-untyped-def]
        row = g.thread() >> 1
        for j in range(2):
            at = (step & LAST_STAGE) * w_words + swizzled(row, piece + j)
            g.store_u32x4(held_w, at, raw[4 * j], raw[4 * j + 1], raw[4 * j + 2], raw[4 * j + 3])

    @g.inline
    def put_unit(held_w, first, second, factors, n_units, step):  # type: ignore[no-untyped-def]
        odd = g.thread() & 1
        widen(first, 0, factors[0], factors[1])
        widen(second, 1, factors[2], factors[3])
        if fills_up and step * 2 + odd >= n_units:
            for i in range(8):
                first[i] = second[i] = g.uint32(0)
        put_half(held_w, step, 4 * odd, first)
        put_half(held_w, step, 4 * odd + 2, second)

    def kernel(  # type: ignore[no-untyped-def]
        out, out_stride, codes, high, scales, supers, n_outputs, n_cols, x, bias, has_bias, mode, n_rows,
    ):  # fmt: skip
        first_token, first_output = g.block() * token_tile, g.block_y() * OUTPUTS
        n_present = g.int32(n_rows[0] - first_token)
        if n_present > 0:
            thread = g.thread()
            held_x, held_w, full = g.dynamic_tiles(0), g.dynamic_tiles(w_first), g.dynamic_u64(barriers_first)
            n_steps, n_units = (n_cols + TILE_COLUMNS - 1) // TILE_COLUMNS, n_cols // UNIT
            own = g.int64(min(first_output + (0 if copied else thread >> 1), n_outputs - 1)) * n_units
            codes, high = g.shifted(codes, own * bits), g.shifted(high, own * high_bits)
            scales, supers = g.shifted(scales, own * n_scales), g.shifted(supers, (own >> 3) * n_supers)
            planes = codes, high, scales, supers
            first, second, factors = g.local_u32(8), g.local_u32(8), g.local_f32(4)
            for i in range(4):
                factors[i] = g.float32(0)
            sums = g.local_f32(n_sums)
            for i in range(n_sums):
                sums[i] = g.float32(0)
            w_place = g.int32(g.shared_byte(held_w, thread // 128 * (w_words // 2)) >> 4)
            x_place = g.int32(g.shared_byte(held_x, 0) >> 4)

            if thread == 0:
                for stage in range(STAGES):
                    g.barrier_init(full, stage, 1)
                g.fence_async()
            for step in range(AHEAD):
                copy_x(held_x, full, x, first_token, n_steps, step)
                if copied:
                    copy_w(held_w, codes, n_outputs - first_output, n_cols, step)
            if not copied:
                read_unit(first, second, factors, planes, n_units, 0)
            for counted in range(n_steps):
                step = g.int32(counted)
                if copied:
                    g.copy_async_wait(waited)
                else:
                    put_unit(held_w, first, second, factors, n_units, step)
                    read_unit(first, second, factors, planes, n_units, step + 1)
                g.fence_async()
                g.warpgroup_wait(1)
                g.sync_threads()  # all have put their weights, and products of two steps ago have ended
                copy_x(held_x, full, x, first_token, n_steps, step + AHEAD)
                if copied:
                    copy_w(held_w, codes, n_outputs - first_output, n_cols, step + AHEAD)
                stage = step & LAST_STAGE
                g.barrier_wait(full, stage, step >> STAGE_BITS & 1)
                own_w = g.int32(w_place + stage * (w_words // 4))
                multiply(sums, own_w, g.int32(x_place + stage * (x_words // 4)))

            g.warpgroup_finish(sums, n_sums)
            g.copy_async_wait(0)
            g.sync_threads()
            lane = g.lane()
            held = g.dynamic_f32(0)
            own_sums = g.shifted(held, (lane & 3) * 2 * PITCH + thread // 32 * 16 + (lane >> 2))
            for n in range(n_across):
                at, i = n * 8 * PITCH, n * 4
                own_sums[at], own_sums[at + beside] = sums[i], sums[i + 1]
                own_sums[at + below], own_sums[at + below + beside] = sums[i + 2], sums[i + 3]
            g.sync_threads()
            own_out = g.shifted(out, g.int64(first_token) * out_stride)
            write_tile(own_out, out_stride, held, n_present, first_output, n_outputs, bias, has_bias, mode)

    return CudaKernel(
        kernel,
        "f32* i32 u32* u32* u16* u16* i32 i32 u32* f32* i32 i32 i64*",
        THREADS,
        max(barriers_first + STAGES * 8, token_tile * PITCH * 4),
        opcodes=("HGMMA.64x", "UBLKCP", *(("LDGSTS.E.BYPASS.128",) if copied else ())),
        work=Work(
            "256 columns of a block",
            OUTPUTS * layout.row_bytes(256) + token_tile * 512,
            2 * OUTPUTS * token_tile * 256,
        ),
        architecture=ARCHITECTURE,
    )
