"""GGUF rows -> weight tiles (tile_layout.py), the same values in another order."""

from __future__ import annotations

from typing import Any

import numpy as np

from .tile_layout import BLOCK, LAYOUTS, ROWS

# bytes of one GGUF block, and where its codes, high bits, scales, d and dmin lie
_SOURCE = {
    "Q4_0": (18, 2, 0, 0, 0, 0),
    "Q4_1": (20, 4, 0, 0, 0, 2),
    "Q5_0": (22, 6, 2, 0, 0, 0),
    "Q5_1": (24, 8, 4, 0, 0, 2),
    "Q8_0": (34, 2, 0, 0, 0, 0),
    "Q2_K": (84, 16, 0, 0, 80, 82),
    "Q3_K": (110, 32, 0, 96, 108, 0),
    "Q4_K": (144, 16, 0, 4, 0, 2),
    "Q5_K": (176, 48, 16, 4, 0, 2),
    "Q6_K": (210, 0, 128, 192, 208, 0),
}


def repack_cpu(format_name: str) -> Any:
    """Args: tiles, rows, row_index (int64), n_tiles, n_cols, bad (int64), 32 words of zeros.

    Tile row i comes from GGUF row row_index[i]; -1 makes a row of zeros. Threads share the tiles.
    `*bad` becomes 1 when a scale (or a float weight) is NaN or infinite.
    """
    return _repack_float(format_name) if LAYOUTS[format_name].is_float else _repack_quantised(format_name)


def _repack_float(format_name: str) -> Any:
    from ..cpu import vector_ops as v

    wide = format_name == "F32"
    element = 4 if wide else 2
    exponent = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}[format_name]

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        tiles, rows, row_index = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        n_tiles, n_cols, bad = v.get_i64(args + 24), v.get_i64(args + 32), v.get_i64(args + 40)
        special = False
        for tile in range(n_tiles * thread // n_threads, n_tiles * (thread + 1) // n_threads):
            target = tiles + tile * n_cols * ROWS * element
            # bounded runs of columns keep the 16 source rows in cache
            for start in range(0, n_cols, 64):
                for r in range(ROWS):
                    row = v.get_i64(row_index + (tile * ROWS + r) * 8)
                    for col in range(start, min(start + 64, n_cols)):
                        cell = target + (col * ROWS + r) * element
                        source = rows + (row * n_cols + col) * element
                        if wide:
                            word = v.get_i32(source) if row >= 0 else np.int32(0)
                            v.put_i32(cell, word)
                        else:
                            word = v.get_u16(source) if row >= 0 else np.int32(0)
                            v.put_u16(cell, word)
                        special |= (word & np.int32(exponent)) == np.int32(exponent)
        if special:
            v.atomic_store(bad, 1)

    return kernel


def _repack_quantised(format_name: str) -> Any:
    from ..cpu import vector_ops as v

    layout = LAYOUTS[format_name]
    source_bytes, codes_at, high_at, scales_at, d_at, min_at = _SOURCE[format_name]
    blocks, superblock_bytes, block_bytes = layout.blocks, layout.superblock_bytes, layout.block_bytes
    header_bytes, low_at, tile_high_at = layout.header_bytes, layout.scale_bytes, layout.high_offset
    two_level, has_min, low_bits, high_bits = (
        layout.two_level,
        layout.has_min,
        layout.low_bits,
        layout.high_bits,
    )
    read_word, read_scale, read_min = _block_reader(format_name, codes_at, high_at, scales_at)
    parts, packed_min = layout.parts, layout.packed_min
    columns = BLOCK * blocks

    @v.inline
    def put_d(target: int, source: int) -> bool:
        d = v.get_u16(source)
        v.put_u16(target, d)
        return (d & np.int32(0x7C00)) == np.int32(0x7C00)

    @v.inline
    def put_codes(block: int, r: int, source: int, b: int) -> None:
        low = block + low_at + 4 * r
        high = block + tile_high_at
        for group in range(8):
            word = read_word(source, b, group)
            if low_bits == 8:
                v.put_i32(low + 64 * group, word)
            elif low_bits == 4:
                part = word & np.int32(0x0F0F0F0F)
                if group < 4:
                    v.put_i32(low + 64 * group, part)
                else:
                    cell = low + 64 * (group - 4)
                    v.put_i32(cell, v.get_i32(cell) | part << np.int32(4))
            else:
                cell = low + 64 * (group // 4)
                old = v.get_i32(cell) if group % 4 else np.int32(0)
                v.put_i32(cell, old | (word & np.int32(0x03030303)) << np.int32(2 * (group % 4)))
            if high_bits == 1:
                bits = (word >> np.int32(low_bits)) & np.int32(0x01010101)
                nibble = (
                    bits | bits >> np.int32(7) | bits >> np.int32(14) | bits >> np.int32(21)
                ) & np.int32(15)
                cell = high + 8 * group + r // 2
                v.put_u8(cell, v.get_u8(cell) | nibble << np.int32(4) if r % 2 else nibble)
            elif high_bits == 2:
                cell = high + 64 * (group // 4) + 4 * r
                old = v.get_i32(cell) if group % 4 else np.int32(0)
                pair = (word >> np.int32(4)) & np.int32(0x03030303)
                v.put_i32(cell, old | pair << np.int32(2 * (group % 4)))

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        tiles, rows, row_index = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        n_tiles, n_cols, bad = v.get_i64(args + 24), v.get_i64(args + 32), v.get_i64(args + 40)
        n_super = n_cols // columns
        special = False
        for tile in range(n_tiles * thread // n_threads, n_tiles * (thread + 1) // n_threads):
            for s in range(n_super):
                target = tiles + (tile * n_super + s) * superblock_bytes
                for r in range(ROWS):
                    row = v.get_i64(row_index + (tile * ROWS + r) * 8)
                    source = rows + (row * n_super + s) * source_bytes
                    if row < 0:
                        source = args + 48  # zeros follow the arguments: a row of padding decodes to 0
                    special |= put_d(target + 2 * r, source + d_at)
                    if has_min:
                        special |= put_d(target + 32 + 2 * r, source + min_at)
                    for b in range(blocks):
                        block = target + header_bytes + b * block_bytes
                        if two_level:
                            for part in range(parts):
                                v.put_u8(block + ROWS * part + r, read_scale(source, b, part))
                                if has_min and not packed_min:
                                    v.put_u8(block + ROWS * (parts + part) + r, read_min(source, b, part))
                        put_codes(block, r, source, b)
        if special:
            v.atomic_store(bad, 1)

    return kernel


def _block_reader(format_name: str, codes_at: int, high_at: int, scales_at: int) -> tuple[Any, Any, Any]:
    """(word(source, b, group), scale(source, b, part), min(source, b, part)) of block b of a GGUF
    (super)block.

    A word is four codes, one a byte, of columns 32*b + 4*group + 0..3.
    """
    from ..cpu import vector_ops as v

    @v.inline
    def spread(bits: int) -> int:
        """4 bits -> the low bit of 4 bytes."""
        return (bits | bits << np.int32(7) | bits << np.int32(14) | bits << np.int32(21)) & np.int32(
            0x01010101
        )

    @v.inline
    def no_term(source: int, b: int, part: int) -> int:
        return np.int32(0)

    @v.inline
    def scale_6bit(source: int, j: int) -> int:
        """The j-th 6-bit scale of Q4_K and Q5_K."""
        at = source + scales_at
        if j < 4:
            return v.get_u8(at + j) & np.int32(63)
        return v.get_u8(at + j + 4) & np.int32(15) | (v.get_u8(at + j - 4) >> np.int32(6)) << np.int32(4)

    @v.inline
    def min_6bit(source: int, j: int) -> int:
        at = source + scales_at
        if j < 4:
            return v.get_u8(at + j + 4) & np.int32(63)
        return v.get_u8(at + j + 4) >> np.int32(4) | (v.get_u8(at + j) >> np.int32(6)) << np.int32(4)

    high_5bit = format_name in ("Q5_0", "Q5_1")

    @v.inline
    def word_simple(source: int, b: int, group: int) -> int:
        word = v.get_i32(source + codes_at + 4 * (group % 4)) >> np.int32(4 * (group // 4))
        word &= np.int32(0x0F0F0F0F)
        if high_5bit:
            bits = (v.get_i32(source + high_at) >> np.int32(4 * group)) & np.int32(15)
            word |= spread(bits) << np.int32(4)
        return word

    @v.inline
    def word_q8_0(source: int, b: int, group: int) -> int:
        return v.get_i32(source + codes_at + 4 * group) ^ np.int32(-2139062144)

    has_high = format_name == "Q5_K"

    @v.inline
    def word_q45_k(source: int, b: int, group: int) -> int:
        word = v.get_i32(source + codes_at + 32 * (b // 2) + 4 * group) >> np.int32(4 * (b % 2))
        word &= np.int32(0x0F0F0F0F)
        if has_high:
            bits = v.get_i32(source + high_at + 4 * group) >> np.int32(b)
            word |= (bits & np.int32(0x01010101)) << np.int32(4)
        return word

    @v.inline
    def word_q6_k(source: int, b: int, group: int) -> int:
        half, i = b // 4, b % 4
        low = v.get_i32(source + 64 * half + 32 * (i % 2) + 4 * group) >> np.int32(4 * (i // 2))
        high = v.get_i32(source + high_at + 32 * half + 4 * group) >> np.int32(2 * i)
        return low & np.int32(0x0F0F0F0F) | (high & np.int32(0x03030303)) << np.int32(4)

    @v.inline
    def word_q3_k(source: int, b: int, group: int) -> int:
        low = v.get_i32(source + codes_at + 32 * (b // 4) + 4 * group) >> np.int32(2 * (b % 4))
        high = v.get_i32(source + 4 * group) >> np.int32(b)
        return low & np.int32(0x03030303) | (high & np.int32(0x01010101)) << np.int32(2)

    @v.inline
    def word_q2_k(source: int, b: int, group: int) -> int:
        word = v.get_i32(source + codes_at + 32 * (b // 4) + 4 * group) >> np.int32(2 * (b % 4))
        return word & np.int32(0x03030303)

    @v.inline
    def scale_q45_k(source: int, b: int, part: int) -> int:
        return scale_6bit(source, b)

    @v.inline
    def min_q45_k(source: int, b: int, part: int) -> int:
        return min_6bit(source, b)

    @v.inline
    def scale_byte(source: int, b: int, part: int) -> int:
        return v.get_u8(source + scales_at + 2 * b + part)

    @v.inline
    def scale_q3_k(source: int, b: int, part: int) -> int:
        i = 2 * b + part
        low = v.get_u8(source + scales_at + i % 8) >> np.int32(4 * (i // 8)) & np.int32(15)
        high = v.get_u8(source + scales_at + 8 + i % 4) >> np.int32(2 * (i // 4)) & np.int32(3)
        return (low | high << np.int32(4)) - np.int32(32)

    readers = {
        "Q8_0": (word_q8_0, no_term, no_term),
        "Q2_K": (word_q2_k, scale_byte, no_term),
        "Q3_K": (word_q3_k, scale_q3_k, no_term),
        "Q4_K": (word_q45_k, scale_q45_k, min_q45_k),
        "Q5_K": (word_q45_k, scale_q45_k, min_q45_k),
        "Q6_K": (word_q6_k, scale_byte, no_term),
    }
    return readers.get(format_name, (word_simple, no_term, no_term))
