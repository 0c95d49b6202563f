"""Instructions of PTX and LLVM as Numba intrinsics, without a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32, VOID = ir.HalfType(), ir.FloatType(), ir.VoidType()
LLVM_TYPES = {
    types.uint8: I8,
    types.uint16: I16,
    types.int32: I32,
    types.uint32: I32,
    types.int64: I64,
    types.uint64: I64,
    types.float32: F32,
}
LETTERS = {types.uint16: "h", types.int32: "r", types.uint32: "r", types.float32: "f", types.uint64: "l"}


# What an instruction means to the compiler besides its result
PURE = 0  # nothing: it may go, move or happen twice
FIXED = 1  # lanes act together: it happens where it stands
MEMORY = 2  # FIXED, and reads or writes memory


def asm(builder: Any, result: Any, text: str, constraints: str, values: Sequence[Any], effect: int) -> Any:
    """One inline instruction."""
    signature = ir.FunctionType(result, [value.type for value in values])
    constraints = ",".join(filter(None, [constraints, "~{memory}" if effect == MEMORY else ""]))
    instruction = ir.InlineAsm(signature, text, constraints, side_effect=effect != PURE)
    return builder.call(instruction, values, attrs=() if effect == PURE else ("convergent",))


def asm_op(text: str, result: Any, *parameters: Any, effect: int = PURE) -> Any:
    """An intrinsic of numbers: `text` with $0 for the result, $1... for the parameters."""
    letters = ["=" + LETTERS[result]] if result is not types.void else []
    constraints = ",".join([*letters, *(LETTERS[p] for p in parameters)])
    llvm_result = LLVM_TYPES[result] if result is not types.void else VOID

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        made = asm(builder, llvm_result, text, constraints, values, effect)
        return made if result is not types.void else context.get_dummy_value()

    return fixed_op(codegen, result, *parameters)


def fixed_op(codegen: Any, result: Any, *parameters: Any) -> Any:
    """An intrinsic with one signature."""
    names = ", ".join(f"p{i}" for i in range(len(parameters)))
    space: dict[str, Any] = {"answer": (result(*parameters), codegen)}
    # Numba reads the number of parameters from the function, and takes no *parameters
    exec(f"def op(context{', ' if names else ''}{names}): return answer", space)
    return intrinsic(space["op"])


def asm_tuple(
    builder: Any, number: Any, n: int, text: str, constraints: str, values: Any, effect: int
) -> list[Any]:
    """One inline instruction with n results."""
    made = asm(builder, ir.LiteralStructType([number] * n), text, constraints, values, effect)
    return [builder.extract_value(made, i) for i in range(n)]


def element(builder: Any, pointer: Any, index: Any) -> Any:
    """The address of pointer[index]; index is int64."""
    return builder.gep(pointer, [index])


def shared_address(builder: Any, pointer: Any) -> Any:
    """A generic pointer into shared memory as the 32-bit address that instructions take."""
    raw = builder.bitcast(pointer, ir.PointerType(I8))
    return builder.ptrtoint(builder.addrspacecast(raw, ir.PointerType(I8, 3)), I32)
