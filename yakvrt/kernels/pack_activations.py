"""Activations in the form the matmul kernels read: `n_tokens` tokens interleaved, as int8 codes, bfloat16 or
float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work

CODE_BYTES = {"int8": 1, "bf16": 2, "f32": 4}
TERM_BYTES = {"int8": 16, "bf16": 0, "f32": 0}  # per 32 columns


def quantize_activations_ref(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes and float32 scales per run of 32 columns, symmetric: x ~ scale * code, scale = max|x| / 127.

    Shapes: x [B, cols] -> codes [B, cols], scales [B, cols / 32].
    """
    blocks = x.astype(np.float32).reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(axis=2)
    inverse = np.where(largest > 1e-30, np.float32(127) / np.maximum(largest, np.float32(1e-30)), 0)
    codes = np.rint(blocks * inverse[..., None].astype(np.float32)).astype(np.int8)
    return codes.reshape(x.shape), largest * np.float32(1 / 127)


def pack_activations_cpu(n_tokens: int, form: str) -> Any:
    """Packs `n_tokens` tokens together, as int8 codes with scales ("int8"), rounded ("bf16") or as they are
    ("f32").

    Args: codes, scales, x, x_stride, n_cols, n_rows*, row_index, codes_copy, scales_copy, x_copy (see
    rms_norm_cpu).
    Shapes: codes in "int8" and "bf16" [packs, cols/32, n_tokens, 32], in "f32" [packs, cols, n_tokens];
    scales float32 [packs, cols/32, 4, n_tokens] with the terms d, d*sum(block), d*sum(first half),
    d*sum(second half).
    Row i comes from row row_index[i] of x (int64), or from row i when row_index is 0. A row beyond n_rows, or
    of index -1, fills its pack up with a copy of the pack's first row, whose results nobody reads.
    Threads share the packs, or the columns of a single one.
    """
    from ..cpu import vector_ops as v
    from ..cpu.quantize_block import quantize_block

    @v.inline
    def source_row(i: int, n_rows: int, row_index: int) -> int:
        first = i // n_tokens * n_tokens
        if row_index:
            row = v.get_i64(row_index + i * 8) if i < n_rows else -1
            return row if row >= 0 else v.get_i64(row_index + first * 8)
        return i if i < n_rows else first

    def quantise_units(source: int, codes: int, scales: int, m: int, first: int, last: int) -> None:
        for block in range(first, last):
            quantize_block(
                source + block * 128,
                codes + (block * n_tokens + m) * 32,
                scales + (block * 4 * n_tokens + m) * 4,
                4 * n_tokens,
            )

    def copy_units(source: int, codes: int, scales: int, m: int, first: int, last: int) -> None:
        for col in range(first, last):
            v.put_f32(codes + (col * n_tokens + m) * 4, v.get_f32(source + col * 4))

    def round_units(source: int, codes: int, scales: int, m: int, first: int, last: int) -> None:
        for block in range(first, last):
            target = codes + (block * n_tokens + m) * 64
            for half in (0, 1):
                v.store_bf16(target + half * 32, v.load_f32(source + block * 128 + half * 64))

    units = {"int8": (quantise_units, 32), "bf16": (round_units, 32), "f32": (copy_units, 1)}
    pack_units, unit_cols = v.inline(units[form][0]), units[form][1]
    code_bytes, term_bytes = CODE_BYTES[form], TERM_BYTES[form]

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        codes, scales = v.get_i64(args), v.get_i64(args + 8)
        x, x_stride, n_cols = v.get_i64(args + 16), v.get_i64(args + 24), v.get_i64(args + 32)
        n_rows, row_index = v.get_i64(v.get_i64(args + 40)), v.get_i64(args + 48)
        codes_copy = v.get_i64(args + 56)
        codes += thread * codes_copy
        scales += thread * v.get_i64(args + 64)
        x += thread * v.get_i64(args + 72)
        n_packs = (n_rows + n_tokens - 1) // n_tokens
        first_pack, last_pack = v.share(n_packs, thread, n_threads, codes_copy)
        first, last = 0, n_cols // unit_cols
        if n_packs == 1:
            first_pack, last_pack = 0, 1
            first, last = v.share(n_cols // unit_cols, thread, n_threads, codes_copy)
        for pack in range(first_pack, last_pack):
            pack_codes = codes + pack * n_cols * code_bytes * n_tokens
            pack_scales = scales + pack * (n_cols // 32) * term_bytes * n_tokens
            for m in range(n_tokens):
                source = x + source_row(pack * n_tokens + m, n_rows, row_index) * x_stride
                pack_units(source, pack_codes, pack_scales, m, first, last)

    return kernel


def quantize_activations_cuda(g: Any) -> CudaKernel:
    """Contiguous rows as int8, four a word, with two terms of every 32 columns: d and d times the sum of the
    codes. Columns are a multiple of 32.

    Shapes: codes uint32 [rows, cols / 4], terms [rows, cols / 32, 2], x [rows, cols].
    Grid: x, blocks of 512 columns; y, rows.
    """
    threads = 128

    def kernel(codes, terms, x, n_cols, n_rows):  # type: ignore[no-untyped-def]
        row, piece = g.block_y(), g.int32(g.block() * threads + g.thread())
        if row < n_rows[0]:
            last = n_cols // 4 - 1
            at = g.int64(row) * (n_cols // 4) + min(piece, last)
            a, b, c, d = g.load_f32x4(x, at * 4)
            largest = max(max(max(a, -a), max(b, -b)), max(max(c, -c), max(d, -d)))
            for step in (4, 2, 1):
                largest = max(largest, g.shuffle_xor(largest, step))
            inverse = g.float32(0)
            if largest > g.float32(1e-30):
                inverse = g.divide(g.float32(127), largest)
            word = g.uint32(g.int32(g.round_even(a * inverse)) & 255)
            word = g.uint32(word | (g.int32(g.round_even(b * inverse)) & 255) << 8)
            word = g.uint32(word | (g.int32(g.round_even(c * inverse)) & 255) << 16)
            word = g.uint32(word | (g.int32(g.round_even(d * inverse)) & 255) << 24)
            total = g.dot4_i8(word, g.uint32(0x01010101), g.int32(0))
            for step in (4, 2, 1):
                total = g.int32(total + g.shuffle_xor(total, step))
            if piece <= last:
                codes[at] = word
                if g.thread() % 8 == 0:
                    scale = largest * g.float32(1 / 127)
                    terms[at // 8 * 2] = scale
                    terms[at // 8 * 2 + 1] = scale * g.float32(total)

    return CudaKernel(
        kernel,
        "u32* f32* f32* i32 i64*",
        threads,
        opcodes=("LDG.E.128", "IDP.4A.S8.S8"),
        work=Work("32 numbers", 168, 128),
    )


def round_activations_cuda(g: Any) -> CudaKernel:
    """Contiguous rows as bfloat16, two a word. Columns are a multiple of 8.

    Shapes: out uint32 [rows, cols / 2], x [rows, cols].
    Grid: x, blocks of 1024 columns; y, rows.
    """
    threads = 128

    def kernel(out, x, n_cols, n_rows):  # type: ignore[no-untyped-def]
        row, column = g.block_y(), (g.block() * threads + g.thread()) * 8
        if row < n_rows[0] and column < n_cols:
            at = g.int64(row) * n_cols + column
            a, b, c, d = g.load_f32x4(x, at)
            e, f, h, i = g.load_f32x4(x, at + 4)
            ab, cd, ef, hi = g.pack_bf16(a, b), g.pack_bf16(c, d), g.pack_bf16(e, f), g.pack_bf16(h, i)
            g.store_u32x4(out, at // 2, ab, cd, ef, hi)

    return CudaKernel(
        kernel,
        "u32* f32* i32 i64*",
        threads,
        opcodes=("LDG.E.128", "STG.E.128", "F2FP.BF16"),
        work=Work("number", 6, 1),
    )
