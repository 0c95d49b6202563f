"""Memory of the device, a block and a thread: 128 bits at a time, arrays, atomics.

All memory is reached through pointers, which know no bounds; LLVM finds out which lie in shared memory.
Indices count elements of the pointer's type.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic

from .llvm_asm import I8, I32, I64, LLVM_TYPES, PURE, asm_tuple, element


def _load4(number: Any) -> Any:
    """load(p, i): 16 bytes as four numbers; their address is a multiple of 16."""
    vector = ir.VectorType(LLVM_TYPES[number], 4)

    @intrinsic
    def load(typing: Any, pointer: Any, index: Any) -> Any:
        result = types.UniTuple(number, 4)

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            address = builder.bitcast(element(builder, *values), ir.PointerType(vector))
            loaded = builder.load(address, align=16)
            parts = [builder.extract_element(loaded, ir.Constant(I32, i)) for i in range(4)]
            return context.make_tuple(builder, result, parts)

        return result(pointer, types.int64), codegen

    return load


def _load_constant(number: Any, letter: str, n: int) -> Any:
    """load(p, i) of device memory that nobody writes while the kernel runs, such as weights: n numbers; their
    address is a multiple of 4 n.
    """

    @intrinsic
    def load(typing: Any, pointer: Any, index: Any) -> Any:
        result = types.UniTuple(number, n)

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            address = builder.ptrtoint(element(builder, *values), I64)
            names = ", ".join(f"${i}" for i in range(n))
            text = f"ld.global.nc.v{n}.{letter}32 {{{names}}}, [${n}];"
            constraint = "f" if letter == "f" else "r"
            constraints = ",".join(["=" + constraint] * n + ["l"])
            parts = asm_tuple(builder, LLVM_TYPES[number], n, text, constraints, [address], PURE)
            return context.make_tuple(builder, result, parts)

        return result(pointer, types.int64), codegen

    return load


@intrinsic
def load_u32_at(typing: Any, pointer: Any, n_bytes: Any) -> Any:
    """The word that many bytes, a multiple of 4, behind the pointer: spares a shift where bytes are known."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        raw = builder.bitcast(values[0], ir.PointerType(I8))
        address = builder.gep(raw, [builder.zext(values[1], I64)], inbounds=True)
        return builder.load(builder.bitcast(address, ir.PointerType(I32)), align=4)

    return types.uint32(pointer, types.uint32), codegen


def _store4(number: Any) -> Any:
    """store(p, i, a, b, c, d): 16 bytes; their address is a multiple of 16."""
    vector = ir.VectorType(LLVM_TYPES[number], 4)

    @intrinsic
    def store(typing: Any, pointer: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            address = builder.bitcast(element(builder, *values[:2]), ir.PointerType(vector))
            packed = ir.Constant(vector, ir.Undefined)
            for i, value in enumerate(values[2:]):
                packed = builder.insert_element(packed, value, ir.Constant(I32, i))
            builder.store(packed, address, align=16)
            return context.get_dummy_value()

        return types.void(pointer, types.int64, number, number, number, number), codegen

    return store


load_f32x4, load_u32x4 = _load4(types.float32), _load4(types.uint32)
load_constant_f32x4 = _load_constant(types.float32, "f", 4)
load_constant_u32x4 = _load_constant(types.uint32, "u", 4)
load_constant_u32x2 = _load_constant(types.uint32, "u", 2)
store_f32x4, store_u32x4 = _store4(types.float32), _store4(types.uint32)


@intrinsic
def shifted(typing: Any, pointer: Any, n: Any) -> Any:
    """The pointer n elements further."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return element(builder, *values)

    return pointer(pointer, types.int64), codegen


def _array(number: Any, shared: bool) -> Any:
    """array(n): n numbers, aligned to 16 bytes; n is a constant of the builder.

    Shared by the block, or a thread's own: registers, where every index is known when compiling.
    """
    llvm_number = LLVM_TYPES[number]
    zero = ir.Constant(I32, 0)

    @intrinsic
    def array(typing: Any, n: Any) -> Any:
        if not isinstance(n, types.IntegerLiteral):
            return None
        llvm_array = ir.ArrayType(llvm_number, n.literal_value)

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            if not shared:
                held = cgutils.alloca_once(builder, llvm_array)
                held.align = 16
                return builder.gep(held, [zero, zero])
            name = builder.module.get_unique_name("shared")
            held = cgutils.add_global_variable(builder.module, llvm_array, name, 3)
            held.align, held.linkage = 16, "internal"
            held.initializer = ir.Constant(llvm_array, ir.Undefined)
            return builder.addrspacecast(builder.gep(held, [zero, zero]), ir.PointerType(llvm_number))

        return types.CPointer(number)(n), codegen

    return array


shared_f32, shared_u32 = _array(types.float32, True), _array(types.uint32, True)
shared_i32, shared_u16 = _array(types.int32, True), _array(types.uint16, True)
local_f32, local_u32 = _array(types.float32, False), _array(types.uint32, False)
local_i32 = _array(types.int32, False)


def _dynamic(number: Any, alignment: int = 16) -> Any:
    """array(offset): the launch's dynamic shared memory from a byte offset on, a multiple of 16."""
    bytes_ = ir.ArrayType(I8, 0)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        held = builder.module.globals.get("dynamic_shared")
        if held is None:
            held = cgutils.add_global_variable(builder.module, bytes_, "dynamic_shared", 3)
            held.align, held.linkage = 16, "external"
        held.align = max(held.align, alignment)
        first = builder.gep(held, [ir.Constant(I32, 0), values[0]])
        generic = builder.addrspacecast(first, ir.PointerType(I8))
        return builder.bitcast(generic, ir.PointerType(LLVM_TYPES[number]))

    @intrinsic
    def array(typing: Any, offset: Any) -> Any:
        return types.CPointer(number)(types.int32), codegen

    return array


dynamic_f32, dynamic_u32, dynamic_u16, dynamic_u64 = (
    _dynamic(number) for number in (types.float32, types.uint32, types.uint16, types.uint64)
)
# dynamic_u32 of memory that begins at a multiple of 1024 bytes, as swizzled tiles must
dynamic_tiles = _dynamic(types.uint32, 1024)


def _atomic_add(number: Any) -> Any:
    """add(p, i, value): the number before; for pointers into device and shared memory."""

    @intrinsic
    def add(typing: Any, pointer: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.atomic_rmw("add", element(builder, *values[:2]), values[2], "monotonic")

        return number(pointer, types.int64, number), codegen

    return add


atomic_add_i32 = _atomic_add(types.int32)
