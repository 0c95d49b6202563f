"""Codes of weights in a GPU's planes (device_layout.py), as the kernels that multiply them read them.

The functions take a row's pointers into the planes.
"""

from __future__ import annotations

from typing import Any

from .device_layout import device_layout

NIBBLES = 0x0F0F0F0F
PAIRS = 0x03030303


def make_read_scale(g: Any, name: str) -> Any:
    """read(scales, supers, unit, half) -> (scale, offset) of 16 columns: their weights are
    scale * (code - zero) + offset.
    """
    layout = device_layout(name)
    two_floats, has_mins = layout.n_scales == 2, layout.n_supers == 2

    @g.inline
    def read_plain(scales, supers, unit, half):  # type: ignore[no-untyped-def]
        if two_floats:
            return g.f32_from_f16(scales[2 * unit]), g.f32_from_f16(scales[2 * unit + 1])
        return g.f32_from_f16(scales[unit]), g.float32(0)

    @g.inline
    def read_scaled(scales, supers, unit, half):  # type: ignore[no-untyped-def]
        pair = g.int32(scales[unit])
        if has_mins:
            d, dmin = g.f32_from_f16(supers[(unit >> 3) * 2]), g.f32_from_f16(supers[(unit >> 3) * 2 + 1])
            return d * g.float32(pair & 255), -dmin * g.float32(pair >> 8)
        code = ((pair >> 8 * half & 255) ^ 128) - 128
        return g.f32_from_f16(supers[unit >> 3]) * g.float32(g.int32(code)), g.float32(0)

    return read_scaled if layout.n_supers else read_plain


def make_read_codes(g: Any, name: str) -> Any:
    """read(words, at, codes, high, unit): the codes of a unit, columns in order, as signed bytes into eight
    words from words[at] on; those of Q6_K less their zero.
    """
    layout = device_layout(name)
    has_high = layout.high_bits > 0

    @g.inline
    def read_bytes(words, at, codes, high, unit):  # type: ignore[no-untyped-def]
        for i in range(2):
            a, b, c, d = g.load_constant_u32x4(codes, unit * 8 + 4 * i)
            words[at + 4 * i], words[at + 4 * i + 1] = a, b
            words[at + 4 * i + 2], words[at + 4 * i + 3] = c, d

    @g.inline
    def read_nibbles(words, at, codes, high, unit):  # type: ignore[no-untyped-def]
        a, b, c, d = g.load_constant_u32x4(codes, unit * 4)
        words[at], words[at + 1], words[at + 2], words[at + 3] = a, b, c, d
        for i in range(4):
            word = words[at + i]
            words[at + i], words[at + 4 + i] = g.uint32(word & NIBBLES), g.uint32(word >> 4 & NIBBLES)
        if has_high:
            for half in range(2):
                pairs = high[2 * unit + half]
                for i in range(4):
                    # less 32 without a borrow between bytes: bit 7 lends, and comes out as the sign
                    code = words[at + 4 * half + i] | (pairs >> 2 * i & PAIRS) << 4 | 0x80808080
                    words[at + 4 * half + i] = g.uint32((g.uint32(code) - 0x20202020) ^ 0x80808080)

    return read_nibbles if layout.bits == 4 else read_bytes


def make_load_half_unit(g: Any, name: str) -> Any:
    """load(raw, codes, high, unit, half): what 16 columns are made of into raw[0...7], not decoded yet."""
    layout = device_layout(name)
    bits, has_high = layout.bits, layout.high_bits > 0

    @g.inline
    def load(raw, codes, high, unit, half):  # type: ignore[no-untyped-def]
        if bits == 4:
            raw[0], raw[1], raw[2], raw[3] = g.load_constant_u32x4(codes, unit * 4)
            if has_high:
                raw[4] = high[2 * unit + half]
        elif bits == 8:
            raw[0], raw[1], raw[2], raw[3] = g.load_constant_u32x4(codes, unit * 8 + half * 4)
        else:
            raw[0], raw[1], raw[2], raw[3] = g.load_constant_u32x4(codes, unit * 16 + half * 8)
            raw[4], raw[5], raw[6], raw[7] = g.load_constant_u32x4(codes, unit * 16 + half * 8 + 4)

    return load


def make_decode_half_unit(g: Any, name: str) -> Any:
    """decode(values, raw, half, scale, offset): 16 float32 weights of a quantised format into values[0...15].

    A code becomes a float32 as the low bits of 2**23, since integers are converted at less than a quarter of
    the rate of an addition.
    """
    layout = device_layout(name)
    bits, has_high = layout.bits, layout.high_bits > 0
    flips = 0x80808080 if bits == 8 else 0
    zero = float(2**23 + (128 if bits == 8 else layout.zero))

    @g.inline
    def decode(values, raw, half, scale, offset):  # type: ignore[no-untyped-def]
        for i in range(4):
            word = raw[i]
            if bits == 4:
                word = g.uint32(word >> 4 * half & NIBBLES)
                if has_high:
                    word = g.uint32(word | (raw[4] >> 2 * i & PAIRS) << 4)
            word = g.uint32(word ^ flips)
            for j in range(4):
                held = g.f32_from_bits(g.uint32(word >> 8 * j & 255 | 0x4B000000))
                values[4 * i + j] = g.fma(scale, held - g.float32(zero), offset)

    return decode


def make_widen_half_unit(g: Any, name: str) -> Any:
    """widen(raw, half, scale, offset): raw[0...7] becomes 16 bfloat16 weights, rounded once."""
    layout = device_layout(name)
    decode: Any = None if layout.is_float else make_decode_half_unit(g, name)

    @g.inline
    def widen_codes(raw, half, scale, offset):  # type: ignore[no-untyped-def]
        values = g.local_f32(16)
        decode(values, raw, half, scale, offset)
        for i in range(8):
            raw[i] = g.pack_bf16(values[2 * i], values[2 * i + 1])

    @g.inline
    def widen_halves(raw, half, scale, offset):  # type: ignore[no-untyped-def]
        for i in range(8):
            raw[i] = g.pack_bf16(g.low_f16(raw[i]), g.high_f16(raw[i]))

    return widen_halves if layout.is_float else widen_codes
