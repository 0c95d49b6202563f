"""Who a thread is, barriers of a block, and functions that kernels call."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import cuda
from numba.cuda import cgutils, types

from ...kernel_build.made_once import made_once
from .llvm_asm import MEMORY, VOID, asm_op, fixed_op

thread = asm_op("mov.u32 $0, %tid.x;", types.int32)
lane = asm_op("mov.u32 $0, %laneid;", types.int32)
block = asm_op("mov.u32 $0, %ctaid.x;", types.int32)
block_y = asm_op("mov.u32 $0, %ctaid.y;", types.int32)
n_blocks = asm_op("mov.u32 $0, %nctaid.x;", types.int32)


def _barrier(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    function = ir.FunctionType(VOID, [])
    builder.call(cgutils.get_or_insert_function(builder.module, function, "llvm.nvvm.barrier0"), [])
    return context.get_dummy_value()


sync_threads = fixed_op(_barrier, types.void)
sync_warp = asm_op("bar.warp.sync 0xffffffff;", types.void, effect=MEMORY)

inline = made_once(cuda.jit(device=True, forceinline=True))
