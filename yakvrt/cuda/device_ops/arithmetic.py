"""Arithmetic of float32 in single instructions. The approximate ones say how far they are off."""

from __future__ import annotations

from numba.cuda import types

from .llvm_asm import asm_op

f32, u32, i32 = types.float32, types.uint32, types.int32

fma = asm_op("fma.rn.f32 $0, $1, $2, $3;", f32, f32, f32, f32)
sqrt = asm_op("sqrt.rn.f32 $0, $1;", f32, f32)
divide = asm_op("div.full.f32 $0, $1, $2;", f32, f32, f32)  # 2 ulp, divisors up to 2**126
absolute = asm_op("abs.f32 $0, $1;", f32, f32)
round_even = asm_op("cvt.rni.f32.f32 $0, $1;", f32, f32)
rsqrt = asm_op("rsqrt.approx.f32 $0, $1;", f32, f32)  # relative 2**-22.9
reciprocal = asm_op("rcp.approx.f32 $0, $1;", f32, f32)  # 1 ulp
exp2 = asm_op("ex2.approx.ftz.f32 $0, $1;", f32, f32)  # relative 2**-22.5; results below 2**-126 become 0
log2 = asm_op("lg2.approx.f32 $0, $1;", f32, f32)  # absolute 2**-22
# c + the sum of the products of four signed bytes
dot4_i8 = asm_op("dp4a.s32.s32 $0, $1, $2, $3;", i32, u32, u32, i32)
