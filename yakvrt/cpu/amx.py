"""AMX in LLVM IR: eight matrix registers ("tiles") of up to 16 rows, here always of 64 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from .simd import I8, declare

POINTER = I8.as_pointer()


def tile_number(n: int) -> ir.Constant:
    return ir.Constant(I8, n)


def emit(builder: Any, name: str, *arguments: Any) -> None:
    """Calls llvm.x86.NAME; addresses are given as pointers, tiles by number."""
    signature = [argument.type for argument in arguments]
    builder.call(declare(builder, f"llvm.x86.{name}", ir.VoidType(), signature), arguments)


def emit_configure(builder: Any, rows: Sequence[int] = (16,) * 8) -> None:
    """The eight tiles get so many rows of 64 bytes, and zeros. Every thread does this before it uses them,
    and emit_release() afterwards.
    """
    module = builder.module
    name = "amx_configuration_" + "_".join(map(str, rows))
    words = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [*rows] + [0] * 8  # palette; bytes a row; rows
    values = ir.Constant(ir.ArrayType(I8, 64), words)
    if name not in module.globals:
        variable = ir.GlobalVariable(module, values.type, name)
        variable.initializer, variable.global_constant, variable.linkage = values, True, "internal"
        variable.align = 64
    emit(builder, "ldtilecfg", builder.bitcast(module.globals[name], POINTER))


def emit_release(builder: Any) -> None:
    emit(builder, "tilerelease")


def emit_load(builder: Any, tile: int, address: Any, stride: Any) -> None:
    """Rows of 64 bytes, `stride` bytes apart."""
    emit(builder, "tileloadd64", tile_number(tile), builder.inttoptr(address, POINTER), stride)


def emit_store(builder: Any, tile: int, address: Any, stride: Any) -> None:
    emit(builder, "tilestored64", tile_number(tile), builder.inttoptr(address, POINTER), stride)


def emit_zero(builder: Any, tile: int) -> None:
    emit(builder, "tilezero", tile_number(tile))


def emit_dot_bf16(builder: Any, sums: int, left: int, right: int) -> None:
    """sums[m][n] += sum over k < 16, j < 2 of left[m][2k + j] * right[k][2n + j]; sums float32, others
    bfloat16.
    """
    emit(builder, "tdpbf16ps", *map(tile_number, (sums, left, right)))


def emit_dot_int8(builder: Any, sums: int, left: int, right: int) -> None:
    """sums[m][n] += sum over k < 16, j < 4 of left[m][4k + j] * right[k][4n + j]; sums int32, left int8,
    right uint8.
    """
    emit(builder, "tdpbsud", *map(tile_number, (sums, left, right)))
