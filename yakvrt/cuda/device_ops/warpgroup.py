"""Tensor core products of sm_90a: four warps multiply what lies in shared memory, beside what else they do.

C [64, n] += A [64, 16] B [16, n] in bfloat16, sums in float32. A and B are given by descriptors: bits 0 to 13
the address / 16, 16 to 29 and 32 to 45 two offsets / 16, 62 and 63 the swizzle. Rows of A and columns of B
are contiguous. Lane l of warp w holds in sums[4j + 2h + e] row 16w + 8h + l/4, column 8j + 2(l%4) + e.

Source: PTX ISA 9.0, wgmma.mma_async, matrix descriptor, fragments of m64nNk16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

from .llvm_asm import F32, I32, MEMORY, VOID, asm, asm_op, asm_tuple, element, shared_address


def _through_registers(
    context: Any, builder: Any, sums: Any, n: int, text: str, letters: str, others: Any
) -> Any:
    """One instruction that may change n sums; in its text they are $0... and the others follow 2n."""
    cells = [builder.gep(sums, [ir.Constant(I32, i)]) for i in range(n)]
    tied = ",".join(["=f"] * n + [str(i) for i in range(n)]) + letters
    values = [builder.load(cell) for cell in cells] + list(others)
    for cell, value in zip(cells, asm_tuple(builder, F32, n, text, tied, values, MEMORY), strict=True):
        builder.store(value, cell)
    return context.get_dummy_value()


def _warpgroup_mma(n: int) -> Any:
    """mma(sums, a, b) with n / 2 sums of each thread; a and b are descriptors."""
    n_sums = n // 2
    registers = ", ".join(f"${i}" for i in range(n_sums))
    text = (
        f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16"
        f" {{{registers}}}, ${2 * n_sums}, ${2 * n_sums + 1}, 1, 1, 1, 0, 0;"
    )

    @intrinsic
    def mma(typing: Any, sums: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return _through_registers(context, builder, values[0], n_sums, text, ",l,l", values[1:])

        return types.void(sums, types.uint64, types.uint64), codegen

    return mma


warpgroup_mma_n128, warpgroup_mma_n256 = _warpgroup_mma(128), _warpgroup_mma(256)
# before the first product, and between other uses of the sums and the next one
warpgroup_fence = asm_op("wgmma.fence.sync.aligned;", types.void, effect=MEMORY)
# the products since the last commit are a group
warpgroup_commit = asm_op("wgmma.commit_group.sync.aligned;", types.void, effect=MEMORY)


@intrinsic
def warpgroup_wait(typing: Any, n: Any) -> Any:
    """Until at most n groups are under way: what the others read may be overwritten; n is a constant of the
    builder.
    """
    if not isinstance(n, types.IntegerLiteral):
        return None
    text = f"wgmma.wait_group.sync.aligned {n.literal_value};"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        asm(builder, VOID, text, "", [], MEMORY)
        return context.get_dummy_value()

    return types.void(n), codegen


@intrinsic
def warpgroup_finish(typing: Any, sums: Any, n: Any) -> Any:
    """Waits for all groups; then the n sums may be read. Behind warpgroup_wait the compiler might have read
    them before.
    """
    if not isinstance(n, types.IntegerLiteral):
        return None
    n_sums, text = n.literal_value, "wgmma.wait_group.sync.aligned 0;"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _through_registers(context, builder, values[0], n_sums, text, "", [])

    return types.void(sums, n), codegen


@intrinsic
def shared_byte(typing: Any, pointer: Any, index: Any) -> Any:
    """The address of pointer[index] in shared memory, as descriptors hold it."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return shared_address(builder, element(builder, *values))

    return types.uint32(pointer, types.int64), codegen
