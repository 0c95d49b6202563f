"""out[b] = row tokens[b] of the embedding table, read from the tiles the output projection may share."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work
from .device_layout import UNIT, device_layout
from .device_weights import make_decode_half_unit, make_load_half_unit, make_read_scale
from .tile_layout import LAYOUTS


def embed_ref(table: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Shapes: table [V, E], tokens [B] -> [B, E]."""
    return table[tokens]


def embed_cpu(format_name: str) -> Any:
    """Args: out, out_stride, table, n_cols, tokens (int64), n_rows*. Threads share the blocks of all rows."""
    from ..cpu import vector_ops as v
    from ..cpu.tile_row import make_read_row

    layout = LAYOUTS[format_name]
    read_row = make_read_row(format_name)
    unit_cols = 16 if layout.is_float else layout.column_multiple
    unit_bytes = layout.tile_bytes(unit_cols)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, out_stride, table = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        n_cols, tokens, n_rows = v.get_i64(args + 24), v.get_i64(args + 32), v.get_i64(v.get_i64(args + 40))
        n_units = n_cols // unit_cols
        for unit in range(
            n_rows * n_units * thread // n_threads, n_rows * n_units * (thread + 1) // n_threads
        ):
            row, piece = unit // n_units, unit % n_units
            token = v.get_i64(tokens + row * 8)
            tile = table + token // 16 * n_units * unit_bytes
            target = out + row * out_stride + piece * unit_cols * 4
            read_row(tile + piece * unit_bytes, token % 16, target)

    return kernel


def embed_cuda(g: Any, kind: str) -> CudaKernel:
    """Rows of a contiguous table of f32, f16 or bf16; widths are multiples of 8, halves rest as uint32 pairs.

    Grid: a block for each row.
    """
    threads = 128

    def from_f32(out, table, tokens, width, n_rows):  # type: ignore[no-untyped-def]
        row = g.block()
        if row < n_rows[0]:
            source = g.shifted(table, tokens[row] * width)
            out = g.shifted(out, g.int64(row) * width)
            for i in range(g.thread() * 4, width, threads * 4):
                a, b, c, d = g.load_constant_f32x4(source, i)
                g.store_f32x4(out, i, a, b, c, d)

    low, high = (g.low_f16, g.high_f16) if kind == "f16" else (g.low_bf16, g.high_bf16)

    def from_halves(out, table, tokens, width, n_rows):  # type: ignore[no-untyped-def]
        row = g.block()
        if row < n_rows[0]:
            source = g.shifted(table, tokens[row] * width // 2)
            out = g.shifted(out, g.int64(row) * width)
            for i in range(g.thread() * 8, width, threads * 8):
                a, b, c, d = g.load_constant_u32x4(source, i // 2)
                g.store_f32x4(out, i, low(a), high(a), low(b), high(b))
                g.store_f32x4(out, i + 4, low(c), high(c), low(d), high(d))

    return CudaKernel(
        from_f32 if kind == "f32" else from_halves,
        f"f32* {'f32*' if kind == 'f32' else 'u32*'} i64* i32 i64*",
        threads,
        opcodes=("LDG.E.128.CONSTANT", "STG.E.128"),
        work=Work("number", 8 if kind == "f32" else 6),
    )


def embed_planes_cuda(g: Any, format_name: str) -> CudaKernel:
    """Rows of a quantised table in planes (device_layout.py).

    Grid: a block for each row.
    Raises: ValueError.
    """
    layout = device_layout(format_name)
    if layout.is_float:
        raise ValueError(f"{format_name} rows have one plane: use embed_cuda")
    bits, high_bits, n_scales, n_supers = layout.bits, layout.high_bits, layout.n_scales, layout.n_supers
    load, decode = make_load_half_unit(g, format_name), make_decode_half_unit(g, format_name)
    read_scale = make_read_scale(g, format_name)
    threads = 128

    def kernel(out, codes, high, scales, supers, tokens, width, n_rows):  # type: ignore[no-untyped-def]
        row = g.block()
        if row < n_rows[0]:
            units = tokens[row] * (width // UNIT)
            codes, high = g.shifted(codes, units * bits), g.shifted(high, units * high_bits)
            scales, supers = g.shifted(scales, units * n_scales), g.shifted(supers, (units >> 3) * n_supers)
            out = g.shifted(out, g.int64(row) * width)
            raw, values = g.local_u32(8), g.local_f32(16)
            for piece in range(g.thread(), width // 16, threads):
                unit, half = g.int32(piece >> 1), g.int32(piece & 1)
                load(raw, codes, high, unit, half)
                scale, offset = read_scale(scales, supers, unit, half)
                decode(values, raw, half, scale, offset)
                for i in range(0, 16, 4):
                    a, b, c, d = values[i], values[i + 1], values[i + 2], values[i + 3]
                    g.store_f32x4(out, piece * 16 + i, a, b, c, d)

    return CudaKernel(
        kernel,
        "f32* u32* u32* u16* u16* i64* i32 i64*",
        threads,
        opcodes=("LDG.E.128.CONSTANT", "STG.E.128"),
        work=Work("256 numbers", 1024 + layout.row_bytes(256)),
    )
