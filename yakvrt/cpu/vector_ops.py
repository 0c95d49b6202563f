"""What kernels are written in: vector and scalar operations callable from Numba code.

All addresses are int64 byte addresses; `v16f32` is a vector of 16 float32.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from . import simd
from .inline import inline as inline
from .simd import F32, FEATURES, I8, I16, I32, I64, V16F32, V16I32, addr, const, f32, i32, op, v16f32

sched_yield = types.ExternalFunction("sched_yield", types.int32())


# ---- memory


@op(v16f32, addr)
def load_f32(b: Any, p: Any) -> Any:
    return simd.load_floats(b, "f32", p)


@op(types.void, addr, v16f32)
def store_f32(b: Any, p: Any, v: Any) -> None:
    simd.store(b, v, p)


@op(types.void, addr, v16f32)
def store_f16(b: Any, p: Any, v: Any) -> None:
    simd.store_floats(b, "f16", v, p)


@op(types.void, addr, v16f32)
def store_bf16(b: Any, p: Any, v: Any) -> None:
    simd.store_floats(b, "bf16", v, p)


STORE = {"f32": store_f32, "f16": store_f16, "bf16": store_bf16}


@op(types.void, addr)
def prefetch(b: Any, p: Any) -> None:
    """Asks for a cache line; any address is allowed."""
    simd.emit_prefetch(b, p, 0, 64, 1)


@op(f32, addr)
def get_f32(b: Any, p: Any) -> Any:
    return simd.load(b, p, F32)


@op(types.void, addr, f32)
def put_f32(b: Any, p: Any, x: Any) -> None:
    simd.store(b, x, p)


@op(f32, addr, types.int64)
def f32_at(b: Any, p: Any, offset: Any) -> Any:
    return simd.load(b, p, F32, offset)


@op(types.void, addr, types.int64, f32)
def put_f32_at(b: Any, p: Any, offset: Any, x: Any) -> None:
    simd.store(b, x, p, offset)


@op(v16f32, addr)
def load_f16(b: Any, p: Any) -> Any:
    return simd.load_floats(b, "f16", p)


@op(f32, addr)
def get_f16(b: Any, p: Any) -> Any:
    lanes = simd.half_to_float(b, simd.splat(b, simd.load(b, p, I16)))
    return b.extract_element(lanes, ir.Constant(I32, 0))


@op(f32, addr)
def get_bf16(b: Any, p: Any) -> Any:
    return b.bitcast(b.shl(b.zext(simd.load(b, p, I16), I32), ir.Constant(I32, 16)), F32)


@op(v16f32, addr)
def load_bf16(b: Any, p: Any) -> Any:
    return simd.load_floats(b, "bf16", p)


LOAD = {"f32": load_f32, "f16": load_f16, "bf16": load_bf16}
GET = {"f32": get_f32, "f16": get_f16, "bf16": get_bf16}


@op(types.void, addr, v16f32)
def store_i8(b: Any, p: Any, v: Any) -> None:
    """Rounds to nearest even; values must lie within int8."""
    simd.store(b, b.trunc(b.fptosi(simd.round_even(b, v), V16I32), simd.V16I8), p)


@op(v16f32, addr)
def load_u8(b: Any, p: Any) -> Any:
    return b.sitofp(b.zext(simd.load(b, p, simd.V16I8), V16I32), V16F32)


@op(types.int64, addr)
def get_i64(b: Any, p: Any) -> Any:
    return simd.load(b, p, I64)


@op(types.void, addr, types.int64)
def put_i64(b: Any, p: Any, x: Any) -> None:
    simd.store(b, x, p)


@op(i32, addr)
def get_u8(b: Any, p: Any) -> Any:
    return b.zext(simd.load(b, p, I8), I32)


@op(i32, addr)
def get_u16(b: Any, p: Any) -> Any:
    return b.zext(simd.load(b, p, I16), I32)


@op(i32, addr)
def get_i32(b: Any, p: Any) -> Any:
    return simd.load(b, p, I32)


@op(types.void, addr, i32)
def put_u8(b: Any, p: Any, x: Any) -> None:
    simd.store(b, b.trunc(x, I8), p)


@op(types.void, addr, i32)
def put_u16(b: Any, p: Any, x: Any) -> None:
    simd.store(b, b.trunc(x, I16), p)


@op(types.void, addr, i32)
def put_i32(b: Any, p: Any, x: Any) -> None:
    simd.store(b, x, p)


def _put_half(kind: str) -> Any:
    @op(types.void, addr, f32)
    def put(b: Any, p: Any, x: Any) -> None:
        lanes = (simd.float_to_half if kind == "f16" else simd.float_to_bfloat)(b, simd.splat(b, x))
        simd.store(b, b.extract_element(lanes, ir.Constant(I32, 0)), p)

    return put


PUT = {"f32": put_f32, "f16": _put_half("f16"), "bf16": _put_half("bf16")}


# ---- arithmetic


@op(v16f32)
def zero(b: Any) -> Any:
    return const(V16F32, 0.0)


@op(v16f32, f32)
def splat(b: Any, x: Any) -> Any:
    return simd.splat(b, x)


@op(v16f32, v16f32, v16f32)
def add(b: Any, x: Any, y: Any) -> Any:
    return b.fadd(x, y)


@op(v16f32, v16f32, v16f32)
def mul(b: Any, x: Any, y: Any) -> Any:
    return b.fmul(x, y)


@op(v16f32, v16f32, v16f32, v16f32)
def fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return simd.fmadd(b, x, y, z)


@op(v16f32, v16f32, v16f32)
def vmax(b: Any, x: Any, y: Any) -> Any:
    return simd.vmax(b, x, y)


@op(v16f32, v16f32, v16f32)
def sub(b: Any, x: Any, y: Any) -> Any:
    return b.fsub(x, y)


@op(v16f32, v16f32)
def vabs(b: Any, x: Any) -> Any:
    return b.bitcast(b.and_(b.bitcast(x, V16I32), const(V16I32, 0x7FFFFFFF)), V16F32)


@op(v16f32, v16f32)
def vexp(b: Any, x: Any) -> Any:
    return simd.exponential(b, x)


@op(f32, f32)
def scalar_exp(b: Any, x: Any) -> Any:
    return b.extract_element(simd.exponential(b, simd.splat(b, x)), ir.Constant(I32, 0))


@op(v16f32, v16f32)
def vlog(b: Any, x: Any) -> Any:
    return simd.logarithm(b, x)


@op(v16f32, v16f32)
def silu(b: Any, x: Any) -> Any:
    """x / (1 + e^-x)."""
    return simd.silu(b, x)


@op(f32, v16f32)
def hsum(b: Any, v: Any) -> Any:
    return simd.sum_lanes(b, v)


@op(v16f32, addr)
def load_sums(b: Any, p: Any) -> Any:
    """The sums of 16 vectors that lie one behind another."""
    return simd.sums_of(b, [simd.load(b, p, V16F32, 64 * i) for i in range(16)])


@op(f32, v16f32)
def hmax(b: Any, v: Any) -> Any:
    return simd.max_lanes(b, v)


# ---- threads


@op(types.int64, addr, types.int64)
def atomic_add(b: Any, p: Any, x: Any) -> Any:
    """Returns the old value."""
    return b.atomic_rmw("add", b.inttoptr(p, I64.as_pointer()), x, "seq_cst")


@op(types.int64, addr, types.int64)
def atomic_swap(b: Any, p: Any, x: Any) -> Any:
    return b.atomic_rmw("xchg", b.inttoptr(p, I64.as_pointer()), x, "seq_cst")


@op(types.int64, addr)
def atomic_load(b: Any, p: Any) -> Any:
    return b.load_atomic(b.inttoptr(p, I64.as_pointer()), "seq_cst", 8)


@op(types.void, addr, types.int64)
def atomic_store(b: Any, p: Any, x: Any) -> None:
    b.store_atomic(x, b.inttoptr(p, I64.as_pointer()), "seq_cst", 8)


@op(types.void, addr, types.int64)
def atomic_publish(b: Any, p: Any, x: Any) -> None:
    """A store; who loads x sees all that was stored before."""
    b.store_atomic(x, b.inttoptr(p, I64.as_pointer()), "release", 8)


@op(types.void)
def pause(b: Any) -> None:
    """Tells the core that this is a spin loop."""
    if FEATURES.x86:
        b.call(simd.declare(b, "llvm.x86.sse2.pause", ir.VoidType(), []), [])


@op(types.void, types.int64, types.int64, types.int64, types.int64, types.int64)
def call_kernel(b: Any, function: Any, thread: Any, n_threads: Any, counter: Any, arguments: Any) -> None:
    """function(thread, n_threads, counter, arguments), a kernel's C signature."""
    signature = ir.FunctionType(ir.VoidType(), [I64, I64, I64, I64])
    b.call(b.inttoptr(function, signature.as_pointer()), [thread, n_threads, counter, arguments])


@inline
def share(n_units: int, thread: int, n_threads: int, private: int) -> tuple[int, int]:
    """The units a thread computes: its part, or all where every thread keeps a copy of its own."""
    if private:
        return 0, n_units
    return n_units * thread // n_threads, n_units * (thread + 1) // n_threads
