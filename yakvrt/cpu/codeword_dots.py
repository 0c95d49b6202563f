"""Dot products of int8 queries with keys held as HIGGS codes, as LLVM IR (see kernels/higgs_layout.py).

With AVX-512 VBMI the int8 grid lies in registers, one plane per dimension: 64 codes are looked up at once,
and since a tile keeps 4 sub-vectors of a token in one 32-bit lane, the bytes found feed the dot product as
they are. Elsewhere whole points are gathered as 32-bit words.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels.higgs_layout import BLOCK_TOKENS, SELECTORS, TILE_TOKENS, GridTables
from . import simd
from .gather import gather_words
from .query_record import query_layout
from .simd import (
    F32,
    FEATURES,
    I16,
    I32,
    I64,
    V16F32,
    V16I16,
    V16I32,
    V64I8,
    const,
    const_i64,
    declare,
    emit_prefetch,
    fmadd,
    load,
    splat,
    vmax,
)
from .tile_reader import dot_codes

PREFETCH_AHEAD = 4096  # bytes
MAX_QUERIES = 8  # accumulators beside the tables
REGISTERS = 27  # for accumulators and tables


def look_up(builder: Any, plane: list[Any], codes: Any, mirrored: Any) -> Any:
    """The bytes of 64 codes; `mirrored` is 255 where a code is a mirror image: its byte is 255 - b."""
    fn = declare(builder, "llvm.x86.avx512.vpermi2var.qi.512", V64I8, [V64I8, V64I8, V64I8])
    return builder.xor(builder.call(fn, [plane[0], codes, plane[1]]), mirrored)


class Table:
    """The byte form of one grid: its planes in registers, or the address where points are gathered."""

    def __init__(self, builder: Any, dim: int, memory: Any) -> None:
        self.layout, self.memory = GridTables(dim, 256), memory
        self.planes = []
        if FEATURES.avx512_vbmi:
            first = self.layout.bytes8
            for plane in range(first, first + 128 * dim, 128):
                self.planes.append([load(builder, memory, V64I8, plane + i) for i in (0, 64)])

    def step(self, builder: Any) -> Any:
        return splat(builder, load(builder, self.memory, F32, self.layout.step))


class _Sums:
    """Integer accumulators of a few queries, starting at the correction for unsigned codes."""

    def __init__(self, builder: Any, records: list[Any], dim: int) -> None:
        self.builder = builder
        # a dot product waits four cycles for the one before it in its chain
        self.chains = 2 if 2 * len(records) + 2 * dim <= REGISTERS else 1
        self.cells = []
        for record in records:
            start = splat(builder, load(builder, record, I32, 8))
            cells = [cgutils.alloca_once(builder, V16I32) for _ in range(self.chains)]
            for i, cell in enumerate(cells):
                builder.store(const(V16I32, 0) if i else start, cell)
            self.cells.append(cells)

    def add(self, query: int, turn: int, found: Any, words: Any) -> None:
        cell = self.cells[query][turn % self.chains]
        self.builder.store(dot_codes(self.builder, self.builder.load(cell), found, words, True), cell)

    def totals(self) -> list[Any]:
        totals = []
        for first, *others in self.cells:
            total = self.builder.load(first)
            for cell in others:
                total = self.builder.add(total, self.builder.load(cell))
            totals.append(total)
        return totals


def _in_every_lane(builder: Any, address: Any, offset: int, word: ir.Type) -> Any:
    lanes = splat(builder, load(builder, address, word, offset), 512 // word.width)
    return builder.bitcast(lanes, V64I8)


def _add_by_planes(
    builder: Any, sums: _Sums, table: Table, n_vectors: int, codes: Any, queries: list[Any], word: ir.Type
) -> None:
    """Adds n_vectors vectors of codes; a query's codes of one vector and one dimension are one `word`."""
    word_bytes = word.width // 8
    with cgutils.for_range(builder, const_i64(n_vectors)) as loop:
        vector = load(builder, codes, V64I8, builder.mul(loop.index, const_i64(64)))
        mirrored = builder.sext(builder.icmp_signed("<", vector, const(V64I8, 0)), V64I8)
        start = builder.mul(loop.index, const_i64(word_bytes * table.layout.dim))
        parts = [builder.add(query, start) for query in queries]
        for d, plane in enumerate(table.planes):
            found = look_up(builder, plane, vector, mirrored)
            for g, part in enumerate(parts):
                sums.add(g, d, found, _in_every_lane(builder, part, word_bytes * d, word))


def _add_by_gathers(
    builder: Any, sums: _Sums, table: Table, n_vectors: int, codes: Any, queries: list[Any], word: ir.Type
) -> None:
    """The same where a query's codes are in their own order: one `word` per sub-vector and 4 dimensions."""
    word_bytes, n_words = word.width // 8, max(1, table.layout.dim // 4)
    with cgutils.for_range(builder, const_i64(n_vectors)) as loop:
        vector = load(builder, codes, V16I32, builder.mul(loop.index, const_i64(64)))
        start = builder.mul(loop.index, const_i64(word_bytes * n_words * 4))
        parts = [builder.add(query, start) for query in queries]
        for j in range(4):
            indices = builder.and_(builder.lshr(vector, const(V16I32, 8 * j)), const(V16I32, 255))
            for k in range(n_words):
                points = builder.add(table.memory, const_i64(table.layout.words8 + 4 * k))
                found = builder.bitcast(gather_words(builder, points, indices, 1 + n_words), V64I8)
                for g, part in enumerate(parts):
                    words = _in_every_lane(builder, part, word_bytes * (n_words * j + k), word)
                    sums.add(g, j, found, words)


_add_codes = _add_by_planes if FEATURES.avx512_vbmi else _add_by_gathers


class Scorer:
    """Emits the scores of one block for a few queries that share every look-up."""

    def __init__(self, kind: str, head_dim: int, queries: range) -> None:
        self.selector, self.head_dim, self.queries = SELECTORS[kind], head_dim, queries
        self.at_codes, self.at_means, self.query_bytes = query_layout(self.selector, head_dim)

    def records(self, builder: Any, queries: Any) -> list[Any]:
        return [builder.add(queries, const_i64(g * self.query_bytes)) for g in self.queries]

    def mean_terms(self, builder: Any, block: Any, records: list[Any], table: Table) -> list[Any]:
        """Per query the logits of the 8 mean rows, row r in lanes 2r and 2r + 1."""
        selector, head_dim = self.selector, self.head_dim
        sums = _Sums(builder, records, table.layout.dim)
        codes = builder.add(block, const_i64(selector.mean_codes(head_dim)))
        queries = [builder.add(record, const_i64(self.at_means)) for record in records]
        _add_codes(builder, sums, table, head_dim // 16, codes, queries, I64)
        undefined = ir.Constant(V16I32, ir.Undefined)
        halves = load(builder, block, ir.VectorType(I16, 8), selector.mean_scales(head_dim))
        twice = builder.shuffle_vector(
            halves, ir.Constant(halves.type, ir.Undefined), ir.Constant(V16I32, [i // 2 for i in range(16)])
        )
        scales = builder.fmul(simd.half_to_float(builder, twice), table.step(builder))
        terms = []
        for record, total in zip(records, sums.totals(), strict=True):
            # a row is two lanes, and both began at the correction
            swapped = builder.shuffle_vector(
                total, undefined, ir.Constant(V16I32, [i ^ 1 for i in range(16)])
            )
            both = builder.sub(builder.add(total, swapped), splat(builder, load(builder, record, I32, 8)))
            factor = builder.fmul(scales, splat(builder, load(builder, record, F32)))
            terms.append(builder.fmul(exact(builder, both, record), factor))
        return terms

    def tile_scores(
        self, builder: Any, tile: Any, scales: Any, records: list[Any], table: Table, means: list[Any]
    ) -> list[Any]:
        """Per query the logits of 16 tokens."""
        sums = _Sums(builder, records, table.layout.dim)
        queries = [builder.add(record, const_i64(self.at_codes)) for record in records]
        _add_codes(builder, sums, table, self.selector.tile_vectors(self.head_dim), tile, queries, I32)
        halves = load(builder, scales, V16I16)
        key_scales = builder.fmul(simd.half_to_float(builder, halves), table.step(builder))
        scores = []
        for record, total, mean in zip(records, sums.totals(), means, strict=True):
            factor = builder.fmul(key_scales, splat(builder, load(builder, record, F32)))
            offset = builder.fadd(splat(builder, load(builder, record, F32, 4)), mean)
            scores.append(fmadd(builder, exact(builder, total, record), factor, offset))
        return scores


def exact(builder: Any, total: Any, record: Any) -> Any:
    """Sums of bytes * codes - 127 * codes -> sums of (bytes - 127.5) * codes."""
    return builder.fadd(builder.sitofp(total, V16F32), splat(builder, load(builder, record, F32, 12)))


def mean_of_tile(builder: Any, term: Any, tile: Any) -> Any:
    """Lanes 4 * tile (8 times) and 4 * tile + 2 (8 times) of a vector of mean terms in memory."""
    first = builder.mul(tile, const_i64(16))
    rows = [splat(builder, load(builder, builder.add(term, first), F32, 8 * r)) for r in (0, 1)]
    return builder.shuffle_vector(*rows, ir.Constant(V16I32, list(range(8)) + list(range(24, 32))))


def make_block_scores(kind: str, head_dim: int, group: int) -> Any:
    """An intrinsic f(queries, blocks, first, last, logits, logits_stride, maxima, tables, mean_tables).

    logits[g][t] of the tokens of blocks first .. last - 1; maxima[g] over them, -inf of none.
    """
    selector = SELECTORS[kind]
    block_bytes, tile_bytes = selector.block_bytes(head_dim), selector.tile_bytes(head_dim)
    scorers = [
        Scorer(kind, head_dim, range(start, min(start + MAX_QUERIES, group)))
        for start in range(0, group, MAX_QUERIES)
    ]
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
            largest = [cgutils.alloca_once_value(builder, lowest) for _ in range(group)]
            terms = [cgutils.alloca_once(builder, V16F32) for _ in range(group)]
            table = Table(builder, selector.dim, tables)
            with cgutils.for_range(builder, builder.sub(last, first)) as outer:
                index = builder.add(first, outer.index)
                block = builder.add(blocks, builder.mul(index, const_i64(block_bytes)))
                if selector.mean_grid:
                    mean_table = Table(builder, 2, mean_tables)
                    for scorer in scorers:
                        records = scorer.records(builder, queries)
                        found = scorer.mean_terms(builder, block, records, mean_table)
                        for g, term in zip(scorer.queries, found, strict=True):
                            builder.store(term, terms[g])
                with cgutils.for_range(builder, const_i64(BLOCK_TOKENS // TILE_TOKENS)) as inner:
                    tile = builder.add(block, builder.mul(inner.index, const_i64(tile_bytes)))
                    emit_prefetch(builder, tile, PREFETCH_AHEAD, tile_bytes)
                    scales = builder.add(block, const_i64(selector.scales(head_dim)))
                    scales = builder.add(scales, builder.mul(inner.index, const_i64(2 * TILE_TOKENS)))
                    token = builder.add(
                        builder.mul(index, const_i64(BLOCK_TOKENS)),
                        builder.mul(inner.index, const_i64(TILE_TOKENS)),
                    )
                    out = builder.add(logits, builder.mul(token, const_i64(4)))
                    for scorer in scorers:
                        means = [const(V16F32, 0.0)] * len(scorer.queries)
                        if selector.mean_grid:
                            addresses = [builder.ptrtoint(terms[g], I64) for g in scorer.queries]
                            means = [mean_of_tile(builder, a, inner.index) for a in addresses]
                        records = scorer.records(builder, queries)
                        scores = scorer.tile_scores(builder, tile, scales, records, table, means)
                        for g, score in zip(scorer.queries, scores, strict=True):
                            target = builder.add(out, builder.mul(logits_stride, const_i64(g)))
                            simd.store(builder, score, target)
                            builder.store(vmax(builder, score, builder.load(largest[g])), largest[g])
            for g, cell in enumerate(largest):
                simd.store(builder, simd.max_lanes(builder, builder.load(cell)), maxima, 4 * g)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), codegen

    return block_scores
