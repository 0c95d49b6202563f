"""What keys held as HIGGS codes weigh, e to their scores, from the sums of codeword_tables.py, as LLVM IR.

A score is sum * key scale * factor, in steps of 1 / 128 of a power of two: 16 bits hold it. Key scales are
fractions of the largest, with 15 bits, and so is the factor of a query: a shift and two multiplications of
32 tokens at once turn sums into steps, and these are weights but for their mantissas (rough_exponential.py).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels.higgs_layout import BLOCK_TOKENS, SELECTORS
from .codeword_tables import TableScorer, emit_blocks
from .query_record import MULTIPLIER, SHIFT
from .rough_exponential import BIAS, add_weights, low_halves, weights_of_steps
from .simd import (
    F32,
    I16,
    I32,
    V16F32,
    V32I16,
    call,
    const,
    const_i64,
    fmadd,
    half_to_float,
    load,
    splat,
    store,
)

WHOLE = 32767  # a fraction of 1
IN_LOW_BITS = 1.5 * 2**23  # added to an integer, it leaves it in the low bits of a float32


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed(">", a, b), a, b)


class _Weights:
    """Emits the weights of one block, and what says whether they are right."""

    def __init__(
        self, builder: Any, group: int, first: Any, outputs: list[Any], inverse: Any, above: int, least: int
    ) -> None:
        weights, stride, totals, totals_stride, self.extremes = outputs
        self.builder, self.first = builder, first
        self.inverse = splat(builder, builder.fmul(inverse, ir.Constant(F32, WHOLE)))
        self.level, self.least = const(V32I16, BIAS - above), const(V32I16, BIAS + least)
        self.rows = [builder.add(weights, builder.mul(stride, const_i64(g))) for g in range(group)]
        self.totals = [builder.add(totals, builder.mul(totals_stride, const_i64(g))) for g in range(group)]
        ends = const(V32I16, 32767), const(V32I16, -32768)
        self.seen = [[cgutils.alloca_once_value(builder, end) for end in ends] for _ in range(group)]

    def fractions(self, scorer: TableScorer, block: Any) -> list[Any]:
        """The key scales of 32 tokens each."""
        builder, in_low_bits = self.builder, const(V16F32, IN_LOW_BITS)
        parts = [fmadd(builder, x, self.inverse, in_low_bits) for x in scorer.key_scales(block)]
        return [low_halves(builder, *parts[i : i + 2]) for i in (0, 2)]

    def put(self, scorer: TableScorer, block: Any, index: Any) -> None:
        builder = self.builder
        sums, fractions = scorer.sums(block), self.fractions(scorer, block)
        place = builder.sub(index, self.first)
        at, total_at = (builder.mul(place, const_i64(n)) for n in (2 * BLOCK_TOKENS, 64))
        for g, record, found in zip(scorer.members, scorer.records, sums, strict=True):
            multiplier, shift = (
                splat(builder, load(builder, record, I16, i), 32) for i in (MULTIPLIER, SHIFT)
            )
            row, total = builder.add(self.rows[g], at), const(V16F32, 0.0)
            seen = [builder.load(cell) for cell in self.seen[g]]
            for i, (own, fraction) in enumerate(zip(found, fractions, strict=True)):
                seen = [_smaller(builder, own, seen[0]), _larger(builder, own, seen[1])]
                steps = builder.shl(own, shift)
                if scorer.fraction:  # eighths
                    by = builder.sub(shift, const(V32I16, 3))
                    steps = builder.or_(steps, builder.shl(const(V32I16, int(8 * scorer.fraction)), by))
                for factor in (fraction, multiplier):
                    steps = call(builder, "llvm.x86.avx512.pmul.hr.sw.512", V32I16, steps, factor)
                steps = call(builder, "llvm.sadd.sat.v32i16", V32I16, steps, self.level)
                weights = weights_of_steps(builder, _larger(builder, steps, self.least))
                store(builder, weights, row, 64 * i)
                total = add_weights(builder, weights, total)
            for cell, value in zip(self.seen[g], seen, strict=True):
                builder.store(value, cell)
            store(builder, total, builder.add(self.totals[g], total_at))

    def finish(self) -> None:
        """Per query the smallest and the largest sum, int32."""
        builder = self.builder
        for g, cells in enumerate(self.seen):
            for i, (cell, which) in enumerate(zip(cells, ("smin", "smax"), strict=True)):
                found = call(builder, f"llvm.vector.reduce.{which}.v32i16", I16, builder.load(cell))
                store(builder, builder.sext(found, I32), self.extremes, 8 * g + 4 * i)


def make_block_weights(kind: str, head_dim: int, group: int, above: int, least: int) -> Any:
    """An intrinsic f(queries, blocks, first, last, weights, weights_stride, totals, totals_stride, extremes,
    inverse): what blocks first .. last - 1 weigh relative to a score `above` steps above 0, at least 2 to the
    `least` steps. `inverse`: 1 / the largest of their key scales.

    Shapes: weights bfloat16 [G][64 (last - first)], totals float32 [G][last - first][16], to be summed, of a
    block's weights; extremes int32 [G][2]: the smallest and the largest sum. Where one of these, shifted,
    takes more than 16 bits, or where steps do (then a total is not finite), weights are wrong. Records say
    how sums become steps: MULTIPLIER and SHIFT.
    """

    @intrinsic
    def block_weights(
        typing_context: Any,
        queries: Any,
        blocks: Any,
        first: Any,
        last: Any,
        weights: Any,
        weights_stride: Any,
        totals: Any,
        totals_stride: Any,
        extremes: Any,
        inverse: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            scores = _Weights(builder, group, values[2], values[4:9], values[9], above, least)
            emit_blocks(builder, scores.put, kind, head_dim, group, *values[:4])
            scores.finish()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9, types.float32), codegen

    return block_weights


def make_largest_scale(kind: str, head_dim: int) -> Any:
    """An intrinsic f(blocks, first, last) -> the largest key scale of these blocks."""
    selector = SELECTORS[kind]
    block_bytes, at_scales = selector.block_bytes(head_dim), selector.scales(head_dim)

    @intrinsic
    def largest_scale(typing_context: Any, blocks: Any, first: Any, last: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            blocks, first, last = values
            cell = cgutils.alloca_once_value(builder, const(V32I16, 0))
            with cgutils.for_range(builder, builder.sub(last, first)) as loop:
                index = builder.add(first, loop.index)
                block = builder.add(blocks, builder.mul(index, const_i64(block_bytes)))
                for i in range(0, 2 * BLOCK_TOKENS, 64):
                    own = load(builder, block, V32I16, at_scales + i)  # as integers they are in order too
                    builder.store(_larger(builder, own, builder.load(cell)), cell)
            found = call(builder, "llvm.vector.reduce.smax.v32i16", I16, builder.load(cell))
            scale = half_to_float(builder, splat(builder, found))
            return builder.extract_element(scale, ir.Constant(I32, 0))

        return types.float32(*[types.int64] * 3), codegen

    return largest_scale
