"""Copies of long runs of bytes into shared memory by the copy engine of sm_90, and the barriers that tell
when they have arrived.

A barrier is a uint64 in shared memory. Its phases are numbered from 0; one ends when all expected threads
have arrived and all expected bytes have come.

Source: PTX ISA 9.0, mbarrier, cp.async.bulk, fence.proxy.
"""

from __future__ import annotations

from typing import Any

from numba.cuda import types
from numba.cuda.extending import intrinsic

from .llvm_asm import I32, I64, MEMORY, VOID, asm, asm_op, element, shared_address
from .threads import inline


def _of_barrier(text: str) -> Any:
    """op(barriers, i, n): $0 is the address of barriers[i], $1 the number."""

    @intrinsic
    def op(typing: Any, barriers: Any, i: Any, n: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            address = shared_address(builder, element(builder, *values[:2]))
            asm(builder, VOID, text, "r,r", [address, values[2]], MEMORY)
            return context.get_dummy_value()

        return types.void(barriers, types.int64, types.int32), codegen

    return op


# of as many threads; fence_async() and a block's barrier make it known
barrier_init = _of_barrier("mbarrier.init.shared::cta.b64 [$0], $1;")
# this thread arrives, and the phase also waits for so many bytes of copies
barrier_expect_bytes = _of_barrier("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;")


@intrinsic
def _phase_ended(typing: Any, barriers: Any, i: Any, parity: Any) -> Any:
    text = "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [$1], $2; selp.b32 $0, 1, 0, p; }"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address = shared_address(builder, element(builder, *values[:2]))
        return asm(builder, I32, text, "=r,r,r", [address, values[2]], MEMORY)

    return types.int32(barriers, types.int64, types.int32), codegen


@inline
def barrier_wait(barriers, i, parity):  # type: ignore[no-untyped-def]
    """Until the phase of this parity, the present one or the one before, has ended."""
    while _phase_ended(barriers, i, parity) == 0:
        pass


@intrinsic
def copy_bulk(
    typing: Any, target: Any, i: Any, source: Any, j: Any, n_bytes: Any, barriers: Any, barrier: Any
) -> Any:
    """target[i...] = source[j...]; the bytes are counted by barriers[barrier]. Addresses and n_bytes are
    multiples of 16. One thread asks for it.
    """
    text = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        to = shared_address(builder, element(builder, *values[:2]))
        origin = builder.ptrtoint(element(builder, *values[2:4]), I64)
        counted = shared_address(builder, element(builder, *values[5:]))
        asm(builder, VOID, text, "r,l,r,r", [to, origin, values[4], counted], MEMORY)
        return context.get_dummy_value()

    parameters = target, types.int64, source, types.int64, types.int32, barriers, types.int64
    return types.void(*parameters), codegen


# what this thread wrote to shared memory before is seen by copies and tensor cores that read it afterwards
fence_async = asm_op("fence.proxy.async.shared::cta;", types.void, effect=MEMORY)
