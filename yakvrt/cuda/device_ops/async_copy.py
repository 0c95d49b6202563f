"""Copies from device to shared memory that run beside the arithmetic, in groups that a thread waits for."""

from __future__ import annotations

from typing import Any

from numba.cuda import types
from numba.cuda.extending import intrinsic

from .llvm_asm import I32, I64, MEMORY, VOID, asm, asm_op, element, shared_address


@intrinsic
def copy_async(typing: Any, target: Any, i: Any, source: Any, j: Any) -> Any:
    """target[i...] = source[j...], 16 bytes; both addresses are multiples of 16."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        to = shared_address(builder, element(builder, *values[:2]))
        origin = builder.ptrtoint(element(builder, *values[2:]), I64)
        asm(builder, VOID, "cp.async.cg.shared.global [$0], [$1], 16;", "r,l", [to, origin], MEMORY)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64), codegen


@intrinsic
def copy_async_or_zero(typing: Any, target: Any, i: Any, source: Any, j: Any, valid: Any) -> Any:
    """copy_async where `valid`; elsewhere the 16 bytes become 0 and the source is not read."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        to = shared_address(builder, element(builder, *values[:2]))
        origin = builder.ptrtoint(element(builder, *values[2:4]), I64)
        n_bytes = builder.select(values[4], I32(16), I32(0))
        text = "cp.async.cg.shared.global [$0], [$1], 16, $2;"
        asm(builder, VOID, text, "r,l,r", [to, origin, n_bytes], MEMORY)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.boolean), codegen


copy_async_commit = asm_op("cp.async.commit_group;", types.void, effect=MEMORY)


@intrinsic
def copy_async_wait(typing: Any, n: Any) -> Any:
    """Waits until at most n of this thread's groups are under way; n is a constant of the builder."""
    if not isinstance(n, types.IntegerLiteral):
        return None
    text = f"cp.async.wait_group {n.literal_value};"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        asm(builder, VOID, text, "", [], MEMORY)
        return context.get_dummy_value()

    return types.void(n), codegen
