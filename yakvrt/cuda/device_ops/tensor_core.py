"""Tensor core products of bfloat16, float16 and 8-bit tiles, and loads of their fragments from shared memory.

Lane l, with r = l/4 and c = 2(l%4), holds words of two numbers at (row, columns):
    A [16, 16]  a0 (r, c and c+1)  a1 8 rows below  a2 8 columns right  a3 both
    B [16, 8]   b0 (rows c and c+1, column r)       b1 8 rows below
and numbers of C [16, 8]: c0, c1 (r, c and c+1), c2, c3 8 rows below.
Of 8-bit numbers a word holds 4, in columns (of B: rows) 4(l%4) to 4(l%4) + 3, and the second half of the
columns begins 16 further.

Source: PTX ISA 9.0, mma.m16n8k16 and ldmatrix.
"""

from __future__ import annotations

from typing import Any

from numba.cuda import types
from numba.cuda.extending import intrinsic

from .llvm_asm import F32, FIXED, I32, MEMORY, asm_op, asm_tuple, element, fixed_op, shared_address


def _mma(number: str) -> Any:
    """(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3) -> c + a b."""
    text = (
        f"mma.sync.aligned.m16n8k16.row.col.f32.{number}.{number}.f32"
        " {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        sums = asm_tuple(builder, F32, 4, text, constraints, values, FIXED)
        return context.make_tuple(builder, signature.return_type, sums)

    return fixed_op(codegen, types.UniTuple(types.float32, 4), *[types.uint32] * 6, *[types.float32] * 4)


mma_m16n8k16_bf16, mma_m16n8k16_f16 = _mma("bf16"), _mma("f16")


# a matrix of 8 x 8 16-bit numbers, lane l holding row l/4, columns 2(l%4) and the next -> its transpose
transpose_matrix = asm_op(
    "movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;", types.uint32, types.uint32, effect=FIXED
)


def _mma_bytes(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    text = (
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32"
        " {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    constraints = ",".join(["=r"] * 4 + ["r"] * 10)
    sums = asm_tuple(builder, I32, 4, text, constraints, values, FIXED)
    return context.make_tuple(builder, signature.return_type, sums)


# the same of unsigned bytes A [16, 32] and signed ones B [32, 8], exact in int32
mma_m16n8k32_u8_s8 = fixed_op(
    _mma_bytes, types.UniTuple(types.int32, 4), *[types.uint32] * 6, *[types.int32] * 4
)


def _load_matrix(n: int, transposed: bool) -> Any:
    """load(p, i) of n matrices of 8 x 8 16-bit numbers: lanes 8m to 8m + 7 give the rows of matrix m, each 16
    bytes of shared memory at a multiple of 16. Word m of lane l is row l/4, columns 2(l%4)..+1, of matrix m,
    or of its transpose.
    """
    words = ", ".join(f"${i}" for i in range(n))
    kind = ".trans" if transposed else ""
    text = f"ldmatrix.sync.aligned.m8n8.x{n}{kind}.shared.b16 {{{words}}}, [${n}];"

    @intrinsic
    def load(typing: Any, pointer: Any, index: Any) -> Any:
        result = types.UniTuple(types.uint32, n)

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            address = shared_address(builder, element(builder, *values))
            constraints = ",".join(["=r"] * n + ["r"])
            parts = asm_tuple(builder, I32, n, text, constraints, [address], MEMORY)
            return context.make_tuple(builder, result, parts)

        return result(pointer, types.int64), codegen

    return load


load_matrix_x2, load_matrix_x4 = _load_matrix(2, False), _load_matrix(4, False)
load_matrix_x2_transposed, load_matrix_x4_transposed = _load_matrix(2, True), _load_matrix(4, True)
