"""Casts, bits of floats, and the half precision formats, which rest in memory as uint16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.cuda import cgutils, types

from .llvm_asm import F16, F32, I16, I32, PURE, asm, asm_op, fixed_op

# casts that wrap as C's do; Numba computes int32 and uint32 in 64 bits, so cast what may pass 32
int32, int64, uint16, uint32, uint64 = types.int32, types.int64, types.uint16, types.uint32, types.uint64
float32 = types.float32


def _bits(result: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], result)

    return codegen


count_ones = asm_op("popc.b32 $0, $1;", types.int32, types.uint32)
# (a, b, selector): byte i of the result is the one of a's and b's 8 bytes that digit i of the selector names
permute_bytes = asm_op("prmt.b32 $0, $1, $2, $3;", types.uint32, types.uint32, types.uint32, types.uint32)
# an `and` that stays where it is: LLVM would move it behind a shift, which then merges with no sum
mask_bits = asm_op("and.b32 $0, $1, $2;", types.uint32, types.uint32, types.uint32)
# (low, high, n): the word that begins at bit n, below 32, of two
funnel_right = asm_op(
    "shf.r.wrap.b32 $0, $1, $2, $3;", types.uint32, types.uint32, types.uint32, types.uint32
)
f32_from_bits = fixed_op(_bits(F32), types.float32, types.uint32)
bits_from_f32 = fixed_op(_bits(I32), types.uint32, types.float32)


def _bf16_part(high: bool, width: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = builder.zext(values[0], I32) if width is I16 else values[0]
        if high:
            return builder.bitcast(builder.and_(word, ir.Constant(I32, 0xFFFF0000)), F32)
        return builder.bitcast(builder.shl(word, ir.Constant(I32, 16)), F32)

    return codegen


def _f16_part(high: bool, width: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = builder.lshr(values[0], ir.Constant(I32, 16)) if high else values[0]
        half = word if width is I16 else builder.trunc(word, I16)
        return builder.fpext(builder.bitcast(half, F16), F32)

    return codegen


f32_from_bf16 = fixed_op(_bf16_part(False, I16), types.float32, types.uint16)
low_bf16 = fixed_op(_bf16_part(False, I32), types.float32, types.uint32)
high_bf16 = fixed_op(_bf16_part(True, I32), types.float32, types.uint32)
f32_from_f16 = fixed_op(_f16_part(False, I16), types.float32, types.uint16)
low_f16 = fixed_op(_f16_part(False, I32), types.float32, types.uint32)
high_f16 = fixed_op(_f16_part(True, I32), types.float32, types.uint32)
bf16_from_f32 = asm_op("cvt.rn.bf16.f32 $0, $1;", types.uint16, types.float32)
f16_from_f32 = asm_op("cvt.rn.f16.f32 $0, $1;", types.uint16, types.float32)


def _pack(instruction: str) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        low, high = values  # the instruction takes the high half first
        return asm(builder, I32, f"{instruction} $0, $1, $2;", "=r,f,f", [high, low], PURE)

    return fixed_op(codegen, types.uint32, types.float32, types.float32)


pack_bf16 = _pack("cvt.rn.bf16x2.f32")  # (low, high)
pack_f16 = _pack("cvt.rn.f16x2.f32")


def constants(values: Sequence[float]) -> Any:
    """A table f(i) of float32 in the kernel itself; where i is known when compiling, so is the value."""
    array = ir.ArrayType(F32, len(values))

    def codegen(context: Any, builder: Any, signature: Any, indices: Any) -> Any:
        name = builder.module.get_unique_name("constants")
        table = cgutils.add_global_variable(builder.module, array, name, 4)
        table.initializer = ir.Constant(array, [float(value) for value in values])
        table.linkage, table.global_constant = "internal", True
        return builder.load(builder.gep(table, [ir.Constant(I32, 0), indices[0]]))

    return fixed_op(codegen, types.float32, types.int32)
