"""Dot products of int8 queries with keys held as HIGGS codes, on matrix registers, as LLVM IR.

The look-ups of codeword_dots.py are written down: 64 bytes hold 4 dimensions of 16 tokens, which is a row of
a matrix register. One multiplication then serves up to 16 queries, where vector units take a dot product for
each. The sums are the same integers.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels.higgs_layout import BLOCK_TOKENS, SELECTORS, TILE_TOKENS
from . import amx, simd
from .codeword_dots import Scorer, Table, mean_of_tile
from .query_record import padded_to_vector, query_layout
from .simd import (
    F32,
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
    max_lanes,
    splat,
    store,
    vmax,
)

TILES = BLOCK_TOKENS // TILE_TOKENS
ROW_BYTES, REGISTER_BYTES = 64, 1024
MAX_QUERIES = 16  # rows of a register
QUERIES, KEYS, SUMS = 0, 4, 6  # registers: four of queries, two of each of the others, used in turn
PREFETCH_AHEAD = 4096  # bytes


def _expand(builder: Any, table: Table, n_vectors: int, codes: Any, out: Any) -> None:
    """The bytes of n_vectors vectors of 64 codes: of vector i and dimension d, row i * dim + d of `out`. Two
    look-ups in 64 bytes are an instruction less than one in 128, on CPUs with matrix registers.
    """
    permute = declare(builder, "llvm.x86.avx512.permvar.qi.512", V64I8, [V64I8, V64I8])
    dim = table.layout.dim
    with cgutils.for_range(builder, const_i64(n_vectors)) as loop:
        vector = load(builder, codes, V64I8, builder.mul(loop.index, const_i64(64)))
        mirrored = builder.sext(builder.icmp_signed("<", vector, const(V64I8, 0)), V64I8)
        upper = builder.icmp_unsigned("!=", builder.and_(vector, const(V64I8, 64)), const(V64I8, 0))
        rows = builder.add(out, builder.mul(loop.index, const_i64(ROW_BYTES * dim)))
        for d, plane in enumerate(table.planes):
            low, high = (builder.call(permute, [half, vector]) for half in plane)
            store(builder, builder.xor(builder.select(upper, high, low), mirrored), rows, ROW_BYTES * d)


class _TileScorer:
    """Emits the scores of one block for some of the queries."""

    def __init__(self, builder: Any, kind: str, head_dim: int, queries: Any, n_queries: int) -> None:
        self.builder, self.head_dim, self.n_queries = builder, head_dim, n_queries
        self.selector = SELECTORS[kind]
        self.n_vectors = self.selector.tile_vectors(head_dim)
        self.n_registers = padded_to_vector(self.n_vectors * 4 * self.selector.dim) // ROW_BYTES
        self.at_codes, _, self.query_bytes = query_layout(self.selector, head_dim)
        self.queries = queries
        self.records = [builder.add(queries, const_i64(g * self.query_bytes)) for g in range(n_queries)]

        def memory(n_rows: int) -> Any:
            return builder.ptrtoint(cgutils.alloca_once(builder, V16I32, n_rows), I64)

        self.keys, self.sums = memory(TILES * self.n_registers * 16), memory(TILES * n_queries)
        self.terms = memory(n_queries)

    def start(self) -> None:
        amx.emit_configure(self.builder, [self.n_queries] * 4 + [16] * 2 + [self.n_queries] * 2)
        for k in range(self.n_registers):
            address = self.builder.add(self.queries, const_i64(self.at_codes + ROW_BYTES * k))
            amx.emit_load(self.builder, QUERIES + k, address, const_i64(self.query_bytes))

    def expand(self, block: Any, table: Table) -> None:
        """Writes down the keys of a block. Shapes: uint8 [4 tiles][registers][16][64]."""
        builder, kept_bytes = self.builder, self.n_registers * REGISTER_BYTES
        tile_bytes = self.selector.tile_bytes(self.head_dim)
        with cgutils.for_range(builder, const_i64(TILES)) as loop:
            codes = builder.add(block, builder.mul(loop.index, const_i64(tile_bytes)))
            emit_prefetch(builder, codes, PREFETCH_AHEAD, tile_bytes)
            keys = builder.add(self.keys, builder.mul(loop.index, const_i64(kept_bytes)))
            _expand(builder, table, self.n_vectors, codes, keys)

    def multiply(self) -> None:
        """Leaves the sums of the keys expanded last in memory. Shapes: int32 [4 tiles][G][16 tokens]."""
        builder, kept_bytes = self.builder, self.n_registers * REGISTER_BYTES
        for tile in range(TILES):
            sums = SUMS + tile % 2
            amx.emit_zero(builder, sums)
            for k in range(self.n_registers):
                keys = KEYS + (tile * self.n_registers + k) % 2
                address = builder.add(self.keys, const_i64(tile * kept_bytes + REGISTER_BYTES * k))
                amx.emit_load(builder, keys, address, const_i64(ROW_BYTES))
                amx.emit_dot_int8(builder, sums, QUERIES + k, keys)
            address = builder.add(self.sums, const_i64(tile * self.n_queries * ROW_BYTES))
            amx.emit_store(builder, sums, address, const_i64(ROW_BYTES))

    def put_scores(self, block: Any, token: Any, table: Table, rows: list[Any], largest: list[Any]) -> None:
        """The logits of a block whose first token is `token`, once multiplied."""
        builder = self.builder
        scales = builder.add(block, const_i64(self.selector.scales(self.head_dim)))
        with cgutils.for_range(builder, const_i64(TILES)) as loop:
            halves = load(builder, scales, V16I16, builder.mul(loop.index, const_i64(2 * TILE_TOKENS)))
            key_scales = builder.fmul(simd.half_to_float(builder, halves), table.step(builder))
            sums = builder.add(self.sums, builder.mul(loop.index, const_i64(self.n_queries * ROW_BYTES)))
            start = builder.add(token, builder.mul(loop.index, const_i64(TILE_TOKENS)))
            at = builder.mul(start, const_i64(4))
            for g, record in enumerate(self.records):
                total = self._centred(load(builder, sums, V16I32, ROW_BYTES * g), record)
                offset = splat(builder, load(builder, record, F32, 4))
                if self.selector.mean_grid:
                    term = builder.add(self.terms, const_i64(ROW_BYTES * g))
                    offset = builder.fadd(offset, mean_of_tile(builder, term, loop.index))
                factor = builder.fmul(key_scales, splat(builder, load(builder, record, F32)))
                score = fmadd(builder, total, factor, offset)
                store(builder, score, builder.add(rows[g], at))
                builder.store(vmax(builder, score, builder.load(largest[g])), largest[g])

    def _centred(self, total: Any, record: Any) -> Any:
        """Sums of bytes * codes -> sums of (bytes - 127.5) * codes; float32 holds both exactly."""
        shift = splat(self.builder, load(self.builder, record, F32, 16))
        return self.builder.fadd(self.builder.sitofp(total, V16F32), shift)


def make_block_scores(kind: str, head_dim: int, group: int) -> Any:
    """As codeword_dots.make_block_scores. Threads come and leave with matrix registers released."""
    selector = SELECTORS[kind]
    block_bytes = selector.block_bytes(head_dim)
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
            for start in range(0, group, MAX_QUERIES):
                members = range(start, min(start + MAX_QUERIES, group))
                query_bytes = query_layout(selector, head_dim)[2]
                own = builder.add(queries, const_i64(start * query_bytes))
                scorer = _TileScorer(builder, kind, head_dim, own, len(members))
                means = Scorer(kind, head_dim, members)
                scorer.start()
                largest = [cgutils.alloca_once_value(builder, lowest) for _ in members]
                rows = [builder.add(logits, builder.mul(logits_stride, const_i64(g))) for g in members]
                mean_table = Table(builder, 2, mean_tables) if selector.mean_grid else None
                n_blocks = builder.sub(last, first)
                # A block is multiplied while the next is expanded: registers wait for what is being written
                # to memory, and so does whoever reads what they write.
                with cgutils.for_range(builder, builder.add(n_blocks, const_i64(1))) as loop:
                    index = builder.add(first, loop.index)
                    block = builder.add(blocks, builder.mul(index, const_i64(block_bytes)))
                    expanded = builder.icmp_signed(">", loop.index, const_i64(0))
                    with builder.if_then(expanded):
                        scorer.multiply()
                    with builder.if_then(builder.icmp_signed("<", loop.index, n_blocks)):
                        scorer.expand(block, table)
                    with builder.if_then(expanded):
                        index = builder.sub(index, const_i64(1))
                        block = builder.sub(block, const_i64(block_bytes))
                        if mean_table:
                            records = means.records(builder, queries)
                            for g, term in enumerate(means.mean_terms(builder, block, records, mean_table)):
                                store(builder, term, scorer.terms, ROW_BYTES * g)
                        token = builder.mul(index, const_i64(BLOCK_TOKENS))
                        scorer.put_scores(block, token, table, rows, largest)
                amx.emit_release(builder)
                for g, cell in zip(members, largest, strict=True):
                    store(builder, max_lanes(builder, builder.load(cell)), maxima, 4 * g)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), codegen

    return block_scores
