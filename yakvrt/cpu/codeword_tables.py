"""Dot products of queries with keys held as HIGGS codes, looked up in tables of the query, as LLVM IR.

A query has a byte for every position of a code and every point of the grid's first half (query_tables.py). 64
tokens are looked up at once: a permutation of 128 bytes, mirrored where a code is a mirror image. The bytes
of two positions are averaged before they are added: that adds below 1 % to the power of the codes' error. So
a query takes one permutation and three simple operations for 64 codes, where codeword_dots.py takes a dot
product for every dimension of a sub-vector.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels.higgs_layout import BLOCK_TOKENS, SELECTORS, TILE_TOKENS
from . import simd
from .codeword_dots import Scorer, Table, look_up, mean_of_tile
from .query_record import TABLE_BYTES, query_layout
from .simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    READ_ONCE,
    V16F32,
    V16I16,
    V16I32,
    V32I16,
    V64I8,
    const,
    const_i64,
    declare,
    emit_prefetch,
    fmadd,
    load,
    opaque,
    splat,
    store,
    vmax,
)

V64I16 = ir.VectorType(I16, 64)
TILES = BLOCK_TOKENS // TILE_TOKENS
TILE_ORDER = (0, 2, 1, 3)  # in the bytes of a lane: of the even sums, of the odd, of the even, of the odd
MAX_QUERIES = 8  # at once: two accumulators each
MAX_TABLES = 16384  # bytes of their tables: half of a first cache
CHUNK = 4  # blocks that come from there again for further queries
PREFETCH_BLOCKS, PREFETCH_BYTES = 8, 8192  # how far ahead at most


def _transposed(builder: Any, tiles: list[Any]) -> list[Any]:
    """Vectors of the codes of four positions of 16 tokens -> vectors of one position of 64 tokens.

    Byte 4 t + i of a result is token t of tile TILE_ORDER[i].
    """
    permute = declare(builder, "llvm.x86.avx512.vpermi2var.qi.512", V64I8, [V64I8, V64I8, V64I8])
    first, second, third, fourth = (tiles[k] for k in TILE_ORDER)
    results = []
    for positions in ((0, 1), (2, 3)):
        # in every 16 bytes: pairs of two tiles, of four tokens, for one position and for the other
        lanes = [
            64 * k + 16 * L + 4 * t + p for L in range(4) for p in positions for t in range(4) for k in (0, 1)
        ]
        chosen = opaque(builder, ir.Constant(V64I8, lanes))
        pairs = [
            builder.bitcast(builder.call(permute, [a, chosen, b]), V32I16)
            for a, b in ((first, second), (third, fourth))
        ]
        for odd in (0, 4):
            joined = [8 * L + odd + t + 32 * k for L in range(4) for t in range(4) for k in (0, 1)]
            both = builder.shuffle_vector(*pairs, ir.Constant(ir.VectorType(I32, 32), joined))
            results.append(builder.bitcast(both, V64I8))
    return results


def _average(builder: Any, a: Any, b: Any) -> Any:
    """(a + b + 1) // 2 of bytes: one instruction."""
    wide = builder.add(builder.zext(a, V64I16), builder.zext(b, V64I16))
    halved = builder.lshr(builder.add(wide, const(V64I16, 1)), const(V64I16, 1))
    return builder.trunc(halved, V64I8)


class _TableScorer:
    """Emits the scores of one block for a few queries."""

    def __init__(self, builder: Any, kind: str, head_dim: int, queries: Any, members: range) -> None:
        self.builder, self.members = builder, members
        self.selector, self.head_dim = SELECTORS[kind], head_dim
        self.n_vectors = self.selector.tile_vectors(head_dim)
        self.tile_bytes = self.selector.tile_bytes(head_dim)
        self.ahead = min(PREFETCH_BYTES, PREFETCH_BLOCKS * self.selector.block_bytes(head_dim))
        at_tables, _, query_bytes = query_layout(self.selector, head_dim)
        self.records = [builder.add(queries, const_i64(g * query_bytes)) for g in members]
        self.tables = [builder.add(record, const_i64(at_tables)) for record in self.records]
        # half of 127.5 for each code, and of a pair's average the mean rounding
        start, fraction = divmod(-63.875 * (head_dim // self.selector.dim), 1)
        start, self.low_bits = int(start), int(65536 * fraction)
        self.starts = [const(V32I16, value % 65536) for value in (start + 256 * start, start)]
        self.cells = [[cgutils.alloca_once(builder, V32I16) for _ in self.starts] for _ in members]

    def sums(self, block: Any) -> list[tuple[Any, Any]]:
        """Per query the sums of tokens, int16 [32]: of the even bytes of transposed codes, of the odd."""
        builder = self.builder
        spread = declare(builder, "llvm.x86.vgf2p8affineqb.512", V64I8, [V64I8, V64I8, I8])
        top_bits = const(V64I8, 128)  # each of the eight bits made is the top bit of the code
        for cells in self.cells:
            for cell, value in zip(cells, self.starts, strict=True):
                builder.store(value, cell)
        with cgutils.for_range(builder, const_i64(self.n_vectors)) as loop:
            at = builder.add(block, builder.mul(loop.index, const_i64(64)))
            tiles = [load(builder, at, V64I8, k * self.tile_bytes) for k in range(TILES)]
            ahead = builder.add(block, builder.mul(loop.index, const_i64(256)))
            if self.members.start == 0:
                emit_prefetch(builder, ahead, self.ahead, 256, READ_ONCE)
            first = builder.mul(loop.index, const_i64(4 * TABLE_BYTES))
            own = [builder.add(table, first) for table in self.tables]
            positions = [
                (codes, builder.call(spread, [codes, top_bits, ir.Constant(I8, 0)]))
                for codes in _transposed(builder, tiles)
            ]
            for table, (every, odd) in zip(own, self.cells, strict=True):
                found = []
                for j, (codes, mirrored) in enumerate(positions):
                    halves = [load(builder, table, V64I8, j * TABLE_BYTES + i) for i in (0, 64)]
                    found.append(look_up(builder, halves, codes, mirrored))
                for pair in (found[:2], found[2:]):
                    mean = builder.bitcast(_average(builder, *pair), V32I16)
                    builder.store(builder.add(builder.load(every), mean), every)
                    upper = builder.lshr(mean, const(V32I16, 8))
                    builder.store(builder.add(builder.load(odd), upper), odd)
        found = []
        for cells in self.cells:
            every, odd = (builder.load(cell) for cell in cells)
            found.append((builder.sub(every, builder.shl(odd, const(V32I16, 8))), odd))
        return found

    def put_scores(
        self,
        block: Any,
        token: Any,
        table: Table,
        rows: list[Any],
        largest: list[Any],
        terms: Any,
    ) -> None:
        """The logits of a block whose first token is `token`."""
        builder = self.builder
        sums = self.sums(block)
        scales = builder.add(block, const_i64(self.selector.scales(self.head_dim)))
        key_scales = []
        for k in range(TILES):
            halves = load(builder, scales, V16I16, 2 * TILE_TOKENS * k)
            key_scales.append(builder.fmul(simd.half_to_float(builder, halves), table.step(builder)))
        for g, (record, found) in enumerate(zip(self.records, sums, strict=True)):
            step = splat(builder, load(builder, record, F32, 20))
            offset = splat(builder, load(builder, record, F32, 4))
            row, most = builder.add(rows[g], builder.mul(token, const_i64(4))), builder.load(largest[g])
            for k in range(TILES):
                total = builder.bitcast(found[k // 2], V16I32)
                if k % 2:
                    total = builder.and_(total, const(V16I32, 0xFFFF0000))
                else:
                    total = builder.shl(total, const(V16I32, 16))
                if self.low_bits:
                    total = builder.or_(total, const(V16I32, self.low_bits))
                shift = offset
                if terms is not None:
                    term = builder.ptrtoint(terms[g], I64)
                    shift = builder.fadd(offset, mean_of_tile(builder, term, const_i64(k)))
                factor = builder.fmul(key_scales[k], step)
                score = fmadd(builder, builder.sitofp(total, V16F32), factor, shift)
                store(builder, score, row, 64 * k)
                most = vmax(builder, score, most)
            builder.store(most, largest[g])


def make_block_scores(kind: str, head_dim: int, group: int) -> Any:
    """As codeword_dots.make_block_scores."""
    selector = SELECTORS[kind]
    block_bytes, behind = selector.block_bytes(head_dim), selector.scales(head_dim)
    query_tables = 4 * selector.tile_vectors(head_dim) * TABLE_BYTES
    n_parts = -(-group // max(1, min(MAX_QUERIES, MAX_TABLES // query_tables)))
    parts = [range(group * i // n_parts, group * (i + 1) // n_parts) for i in range(n_parts)]
    lowest = const(V16F32, float("-inf"))

    @intrinsic
    def block_scores(
        typing_context: Any,
        queries: Any,
        blocks: Any,
        first: Any,
        last: Any,
        logits: Any,
        logits_stride: Any,
        maxima: Any,
        tables: Any,
        mean_tables: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            queries, blocks, first, last, logits, logits_stride, maxima, tables, mean_tables = values
            table = Table(builder, selector.dim, tables)
            largest = [cgutils.alloca_once_value(builder, lowest) for _ in range(group)]
            terms = [cgutils.alloca_once(builder, V16F32) for _ in range(group)]
            rows = [builder.add(logits, builder.mul(logits_stride, const_i64(g))) for g in range(group)]
            for cell in largest:
                builder.store(lowest, cell)

            def score_block(index: Any, members: range, scorer: _TableScorer) -> None:
                block = builder.add(blocks, builder.mul(index, const_i64(block_bytes)))
                if members.start == 0:
                    scales = builder.add(block, const_i64(behind))
                    emit_prefetch(builder, scales, scorer.ahead, block_bytes - behind, READ_ONCE)
                own, shifts = slice(members.start, members.stop), None
                if selector.mean_grid:
                    means, shifts = Scorer(kind, head_dim, members), terms[own]
                    mean_table = Table(builder, 2, mean_tables)
                    found = means.mean_terms(builder, block, scorer.records, mean_table)
                    for cell, term in zip(shifts, found, strict=True):
                        builder.store(term, cell)
                token = builder.mul(index, const_i64(BLOCK_TOKENS))
                scorer.put_scores(block, token, table, rows[own], largest[own], shifts)

            scorers = [_TableScorer(builder, kind, head_dim, queries, members) for members in parts]
            with cgutils.for_range_slice(builder, first, last, const_i64(CHUNK)) as (start, _):
                left, most = builder.sub(last, start), const_i64(CHUNK)
                n_blocks = builder.select(builder.icmp_signed("<", left, most), left, most)
                for members, scorer in zip(parts, scorers, strict=True):
                    with cgutils.for_range(builder, n_blocks) as loop:
                        score_block(builder.add(start, loop.index), members, scorer)
            reduce = declare(builder, "llvm.vector.reduce.fmax.v16f32", F32, [V16F32])
            for g, cell in enumerate(largest):
                store(builder, builder.call(reduce, [builder.load(cell)]), maxima, 4 * g)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), codegen

    return block_scores
