"""Passes over int32 sort keys in vectors, as LLVM IR: what selecting the largest of many is made of."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from . import simd
from .simd import (
    I16,
    I32,
    I64,
    V16F32,
    V16I32,
    addr,
    const,
    const_i64,
    declare,
    f32,
    i32,
    load,
    op,
    splat,
    v16f32,
)

LOWEST = -(2**31)  # below the key of every number
UNROLL = 4
CHUNK = 8  # vectors whose keys share their maxima
LANES = ir.Constant(V16I32, list(range(16)))


def sort_keys(builder: Any, v: Any) -> Any:
    """float32 -> int32 in the same order."""
    bits = builder.bitcast(v, V16I32)
    flip = builder.and_(builder.ashr(bits, const(V16I32, 31)), const(V16I32, 0x7FFFFFFF))
    return builder.xor(bits, flip)


@op(types.void, addr, v16f32, types.int64)
def store_keys(b: Any, p: Any, v: Any, n: Any) -> None:
    """The keys of the first n (any number) of 16 lanes; LOWEST in the rest."""
    present = b.icmp_signed("<", LANES, splat(b, b.trunc(n, I32)))
    simd.store(b, b.select(present, sort_keys(b, v), const(V16I32, LOWEST)), p)


@op(v16f32, v16f32, f32)
def weight(b: Any, logits: Any, normaliser: Any) -> Any:
    """e^(logit - normaliser); 0 for a logit of -inf."""
    x = b.fsub(logits, splat(b, normaliser))
    missing = b.fcmp_ordered("==", logits, const(V16F32, float("-inf")))
    return b.select(missing, const(V16F32, 0.0), simd.exponential(b, x))


def _reduce(builder: Any, name: str, cells: list[Any], combine: Any) -> Any:
    first, *others = (builder.load(cell) for cell in cells)
    for other in others:
        first = combine(first, other)
    return builder.call(declare(builder, f"llvm.vector.reduce.{name}.v16i32", I32, [V16I32]), [first])


@op(types.int64, addr, types.int64, i32)
def count_at_least(b: Any, keys: Any, n_vectors: Any, bound: Any) -> Any:
    """How many keys are at least `bound`; n_vectors a multiple of 4."""
    cells = [cgutils.alloca_once_value(b, const(V16I32, 0)) for _ in range(UNROLL)]
    wanted = splat(b, bound)
    with cgutils.for_range(b, b.sdiv(n_vectors, const_i64(UNROLL))) as loop:
        start = b.add(keys, b.mul(loop.index, const_i64(64 * UNROLL)))
        for i, cell in enumerate(cells):
            found = b.icmp_signed(">=", load(b, start, V16I32, 64 * i), wanted)
            b.store(b.sub(b.load(cell), b.sext(found, V16I32)), cell)
    return b.sext(_reduce(b, "add", cells, b.add), I64)


@op(types.int64, addr, types.int64)
def largest_key(b: Any, keys: Any, n_vectors: Any) -> Any:
    """n_vectors a multiple of 4."""
    return _extreme(b, keys, n_vectors, ">", "smax")


@op(types.int64, addr, types.int64)
def smallest_key(b: Any, keys: Any, n_vectors: Any) -> Any:
    """The smallest above LOWEST; n_vectors a multiple of 4."""
    return _extreme(b, keys, n_vectors, "<", "smin")


@op(types.void, addr, types.int64, addr)
def lane_maxima(b: Any, keys: Any, n_chunks: Any, out: Any) -> None:
    """Of every chunk of CHUNK vectors the largest key of each lane."""
    with cgutils.for_range(b, n_chunks) as loop:
        start = b.add(keys, b.mul(loop.index, const_i64(64 * CHUNK)))
        found = load(b, start, V16I32)
        for i in range(1, CHUNK):
            piece = load(b, start, V16I32, 64 * i)
            found = b.select(b.icmp_signed(">", piece, found), piece, found)
        simd.store(b, found, out, b.mul(loop.index, const_i64(64)))


def _extreme(builder: Any, keys: Any, n_vectors: Any, order: str, name: str) -> Any:
    smallest = order == "<"
    start_value = const(V16I32, 2**31 - 1 if smallest else LOWEST)
    cells = [cgutils.alloca_once_value(builder, start_value) for _ in range(UNROLL)]

    def combine(a: Any, c: Any) -> Any:
        return builder.select(builder.icmp_signed(order, a, c), a, c)

    with cgutils.for_range(builder, builder.sdiv(n_vectors, const_i64(UNROLL))) as loop:
        start = builder.add(keys, builder.mul(loop.index, const_i64(64 * UNROLL)))
        for i, cell in enumerate(cells):
            piece = load(builder, start, V16I32, 64 * i)
            if smallest:
                padding = builder.icmp_signed("==", piece, const(V16I32, LOWEST))
                piece = builder.select(padding, start_value, piece)
            builder.store(combine(piece, builder.load(cell)), cell)
    return builder.sext(_reduce(builder, name, cells, combine), I64)


def _compress(builder: Any, value: Any, chosen: Any, out: Any, count: Any) -> None:
    """The chosen lanes in order at out[count]; up to 16 words from there on are written."""
    name = "llvm.experimental.vector.compress.v16i32"
    fn = declare(builder, name, V16I32, [V16I32, chosen.type, V16I32])
    packed = builder.call(fn, [value, chosen, const(V16I32, 0)])
    simd.store(builder, packed, out, builder.mul(count, const_i64(4)))


def _count_lanes(builder: Any, chosen: Any) -> Any:
    bits = builder.bitcast(chosen, I16)
    return builder.zext(builder.call(declare(builder, "llvm.ctpop.i16", I16, [I16]), [bits]), I64)


@op(types.int64, addr, types.int64, i32, addr, addr)
def keep_at_least(b: Any, keys: Any, n_vectors: Any, bound: Any, kept_keys: Any, kept_ids: Any) -> Any:
    """Keys of at least `bound` with their indices, in order; the buffers need 16 words more than are kept."""
    count = cgutils.alloca_once_value(b, const_i64(0))
    wanted = splat(b, bound)
    with cgutils.for_range(b, n_vectors) as loop:
        piece = load(b, keys, V16I32, b.mul(loop.index, const_i64(64)))
        chosen = b.icmp_signed(">=", piece, wanted)
        first = splat(b, b.trunc(b.mul(loop.index, const_i64(16)), I32))
        kept = b.load(count)
        # without a branch, which would be guessed wrong too often
        _compress(b, piece, chosen, kept_keys, kept)
        _compress(b, b.add(first, LANES), chosen, kept_ids, kept)
        b.store(b.add(kept, _count_lanes(b, chosen)), count)
    return b.load(count)


@op(types.int64, addr, addr, types.int64, i32, i32, addr)
def keep_ids(b: Any, keys: Any, ids: Any, n_vectors: Any, bound: Any, last_equal: Any, kept_ids: Any) -> Any:
    """Ids whose key is above `bound`, or equal to it where the id is at most `last_equal`, in order."""
    count = cgutils.alloca_once_value(b, const_i64(0))
    wanted, limit = splat(b, bound), splat(b, last_equal)
    with cgutils.for_range(b, n_vectors) as loop:
        offset = b.mul(loop.index, const_i64(64))
        piece, numbers = load(b, keys, V16I32, offset), load(b, ids, V16I32, offset)
        early = b.icmp_signed("<=", numbers, limit)
        equal = b.and_(b.icmp_signed("==", piece, wanted), early)
        chosen = b.or_(b.icmp_signed(">", piece, wanted), equal)
        kept = b.load(count)
        _compress(b, numbers, chosen, kept_ids, kept)
        b.store(b.add(kept, _count_lanes(b, chosen)), count)
    return b.load(count)
