"""One row of a weight tile as float32: what an embedding look-up reads."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels.tile_layout import LAYOUTS, ROWS
from . import simd
from .simd import F32, I32, I64
from .tile_reader import read_affine, read_codes, read_header


def make_read_row(format_name: str) -> Any:
    """An intrinsic f(superblock, row, out) writing the columns of one superblock (16 columns of a float
    format).

    It reads the codes of all 16 rows and keeps one lane: a look-up is rare beside the matmuls, and this way
    it needs
    no second reader of the formats.
    """
    layout = LAYOUTS[format_name]

    @intrinsic
    def read_row(typing_context: Any, superblock: Any, row: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            superblock, row, out = values
            emit = _emit_float_row if layout.is_float else _emit_quantised_row
            emit(builder, layout, superblock, row, out)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return read_row


def _emit_float_row(builder: Any, layout: Any, columns: Any, row: Any, out: Any) -> None:
    kind = layout.name.lower()
    lane = builder.trunc(row, I32)
    for col in range(16):
        values = simd.load_floats(builder, kind, columns, col * ROWS * simd.ELEMENT_BYTES[kind])
        simd.store(builder, builder.extract_element(values, lane), out, 4 * col)


def _emit_quantised_row(builder: Any, layout: Any, superblock: Any, row: Any, out: Any) -> None:
    lane = builder.trunc(row, I32)
    header = read_header(builder, layout, superblock)
    words = ir.VectorType(I32, 16)
    with cgutils.for_range(builder, ir.Constant(I64, layout.blocks)) as loop:
        start = builder.mul(loop.index, ir.Constant(I64, layout.block_bytes))
        block = builder.add(superblock, builder.add(start, ir.Constant(I64, layout.header_bytes)))
        target = builder.add(out, builder.mul(loop.index, ir.Constant(I64, 128)))
        for part in range(layout.parts):
            scale, offset = (
                builder.extract_element(v, lane) for v in read_affine(builder, layout, header, block, part)
            )
            for group in range(8 * part // layout.parts, 8 * (part + 1) // layout.parts):
                codes = builder.bitcast(read_codes(builder, layout, block, group), words)
                word = builder.extract_element(codes, lane)
                for j in range(4):
                    byte = builder.and_(builder.lshr(word, ir.Constant(I32, 8 * j)), ir.Constant(I32, 255))
                    value = builder.fmul(builder.uitofp(byte, F32), scale)
                    simd.store(builder, builder.fadd(value, offset), target, 4 * (4 * group + j))
