"""Dot products of queries with keys held as HIGGS codes, looked up in tables of the query, as LLVM IR.

A query has a byte for every position of a code and every point of the grid's first half (query_tables.py). 64
tokens are looked up at once: a permutation of 128 bytes, mirrored where a code is a mirror image. The bytes
of two positions are averaged before they are added: that adds below 1 % to the power of the codes' error. So
a query takes one permutation and three simple operations for 64 codes, where codeword_dots.py takes a dot
product for every dimension of a sub-vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels.higgs_layout import BLOCK_TOKENS, SELECTORS, TILE_TOKENS
from . import simd
from .codeword_dots import Scorer, Table, look_up, mean_of_tile
from .query_record import FACTOR, OFFSET, TABLE_BYTES, query_layout
from .simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
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
    max_lanes,
    opaque,
    splat,
    store,
    vmax,
)

V64I16, V64I32 = ir.VectorType(I16, 64), ir.VectorType(I32, 64)
TILES = BLOCK_TOKENS // TILE_TOKENS
MAX_QUERIES = 8  # at once: two accumulators each
MAX_TABLES = 16384  # bytes of their tables: half of a first cache
CHUNK = 4  # blocks that come from there again for further queries
PREFETCH_BYTES = 12288  # how far ahead at most, in whole blocks
SCALES_AHEAD = 18  # blocks: the scales of a run may be read before its codes (codeword_weights.py)


def _transposed(builder: Any, tiles: list[Any]) -> list[Any]:
    """Vectors of the codes of four positions of 16 tokens -> vectors of one position of 64 tokens.

    Byte 2 t of a result is token t, byte 2 t + 1 token 32 + t.
    """
    permute = declare(builder, "llvm.x86.avx512.vpermi2var.qi.512", V64I8, [V64I8, V64I8, V64I8])
    results = []
    for positions in ((0, 1), (2, 3)):
        # pairs of two tiles: 32 bytes of one position, 32 of the other
        lanes = [64 * k + 4 * t + p for p in positions for t in range(TILE_TOKENS) for k in (0, 1)]
        chosen = opaque(builder, ir.Constant(V64I8, lanes))
        pairs = [builder.call(permute, [tiles[k], chosen, tiles[k + 2]]) for k in (0, 1)]
        for start in (0, 32):
            joined = [64 * k + start + i for k in (0, 1) for i in range(32)]
            results.append(builder.shuffle_vector(*pairs, ir.Constant(V64I32, joined)))
    return results


def _average(builder: Any, a: Any, b: Any) -> Any:
    """(a + b + 1) // 2 of bytes: one instruction."""
    wide = builder.add(builder.zext(a, V64I16), builder.zext(b, V64I16))
    halved = builder.lshr(builder.add(wide, const(V64I16, 1)), const(V64I16, 1))
    return builder.trunc(halved, V64I8)


class TableScorer:
    """Emits the sums of one block for a few queries."""

    def __init__(self, builder: Any, kind: str, head_dim: int, queries: Any, members: range) -> None:
        self.builder, self.members = builder, members
        self.selector, self.head_dim = SELECTORS[kind], head_dim
        self.n_vectors = self.selector.tile_vectors(head_dim)
        self.tile_bytes = self.selector.tile_bytes(head_dim)
        block_bytes = self.selector.block_bytes(head_dim)
        self.ahead = PREFETCH_BYTES // block_bytes * block_bytes
        at_tables, _, query_bytes = query_layout(self.selector, head_dim)
        self.records = [builder.add(queries, const_i64(g * query_bytes)) for g in members]
        self.tables = [builder.add(record, const_i64(at_tables)) for record in self.records]
        # half of 127.5 for each code, and of a pair's average the mean rounding
        start, self.fraction = divmod(-63.875 * (head_dim // self.selector.dim), 1)
        start = int(start)
        self.starts = [const(V32I16, value % 65536) for value in (start + 256 * start, start)]
        self.cells = [[cgutils.alloca_once(builder, V32I16) for _ in self.starts] for _ in members]

    def sums(self, block: Any) -> list[tuple[Any, Any]]:
        """Per query the sums of tokens less `fraction`, int16 [32]: of the first 32, of the others."""
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
                emit_prefetch(builder, ahead, self.ahead, 256, 1)
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

    def key_scales(self, block: Any) -> list[Any]:
        """Of 16 tokens each, float32."""
        scales = self.builder.add(block, const_i64(self.selector.scales(self.head_dim)))
        halves = [load(self.builder, scales, V16I16, 2 * TILE_TOKENS * k) for k in range(TILES)]
        return [simd.half_to_float(self.builder, x) for x in halves]


def emit_blocks(
    builder: Any,
    put: Callable[[TableScorer, Any, Any], None],
    kind: str,
    head_dim: int,
    group: int,
    queries: Any,
    blocks: Any,
    first: Any,
    last: Any,
) -> None:
    """Emits put(scorer, block, index) for blocks first .. last - 1 and for scorers of all the queries."""
    selector = SELECTORS[kind]
    block_bytes, behind = selector.block_bytes(head_dim), selector.scales(head_dim)
    query_tables = 4 * selector.tile_vectors(head_dim) * TABLE_BYTES
    n_parts = -(-group // max(1, min(MAX_QUERIES, MAX_TABLES // query_tables)))
    parts = [range(group * i // n_parts, group * (i + 1) // n_parts) for i in range(n_parts)]
    scorers = [TableScorer(builder, kind, head_dim, queries, members) for members in parts]
    with cgutils.for_range_slice(builder, first, last, const_i64(CHUNK)) as (start, _):
        left, most = builder.sub(last, start), const_i64(CHUNK)
        n_blocks = builder.select(builder.icmp_signed("<", left, most), left, most)
        for scorer in scorers:
            with cgutils.for_range(builder, n_blocks) as loop:
                index = builder.add(start, loop.index)
                block = builder.add(blocks, builder.mul(index, const_i64(block_bytes)))
                if scorer.members.start == 0:
                    scales = builder.add(block, const_i64(behind))
                    ahead = SCALES_AHEAD * block_bytes
                    emit_prefetch(builder, scales, ahead, block_bytes - behind, 1)
                put(scorer, block, index)


class _LogitScores:
    """Emits the logits of one block, and the largest of all."""

    def __init__(self, builder: Any, kind: str, head_dim: int, group: int, addresses: list[Any]) -> None:
        logits, stride, self.maxima, tables, mean_tables = addresses
        self.builder, self.kind, self.head_dim = builder, kind, head_dim
        self.table = Table(builder, SELECTORS[kind].dim, tables)
        self.mean_tables = mean_tables if SELECTORS[kind].mean_grid else None
        self.rows = [builder.add(logits, builder.mul(stride, const_i64(g))) for g in range(group)]
        lowest = const(V16F32, float("-inf"))
        self.largest = [cgutils.alloca_once_value(builder, lowest) for _ in range(group)]
        self.terms = [cgutils.alloca_once(builder, V16F32) for _ in range(group)]

    def put(self, scorer: TableScorer, block: Any, index: Any) -> None:
        builder = self.builder
        if self.mean_tables:
            means = Scorer(self.kind, self.head_dim, scorer.members)
            found = means.mean_terms(builder, block, scorer.records, Table(builder, 2, self.mean_tables))
            for g, term in zip(scorer.members, found, strict=True):
                builder.store(term, self.terms[g])
        at = builder.mul(index, const_i64(4 * BLOCK_TOKENS))
        sums = scorer.sums(block)
        key_scales = [builder.fmul(x, self.table.step(builder)) for x in scorer.key_scales(block)]
        for g, record, halves in zip(scorer.members, scorer.records, sums, strict=True):
            factor = splat(builder, load(builder, record, F32, FACTOR))
            offset = splat(builder, load(builder, record, F32, OFFSET))
            row, most = builder.add(self.rows[g], at), builder.load(self.largest[g])
            for k, scale in enumerate(key_scales):
                own = ir.Constant(V16I32, [k % 2 * TILE_TOKENS + i for i in range(TILE_TOKENS)])
                words = builder.shuffle_vector(halves[k // 2], halves[k // 2], own)
                total = builder.sitofp(builder.sext(words, V16I32), V16F32)
                if scorer.fraction:
                    total = builder.fadd(total, const(V16F32, scorer.fraction))
                shift = offset
                if self.mean_tables:
                    term = builder.ptrtoint(self.terms[g], I64)
                    shift = builder.fadd(offset, mean_of_tile(builder, term, const_i64(k)))
                score = fmadd(builder, total, builder.fmul(scale, factor), shift)
                store(builder, score, row, 64 * k)
                most = vmax(builder, score, most)
            builder.store(most, self.largest[g])

    def finish(self) -> None:
        for g, cell in enumerate(self.largest):
            most = max_lanes(self.builder, self.builder.load(cell))
            store(self.builder, most, self.maxima, 4 * g)


def make_block_scores(kind: str, head_dim: int, group: int) -> Any:
    """As codeword_dots.make_block_scores."""

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
            scores = _LogitScores(builder, kind, head_dim, group, values[4:])
            emit_blocks(builder, scores.put, kind, head_dim, group, *values[:4])
            scores.finish()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), codegen

    return block_scores
