"""Logits of queries against selector blocks, straight from the codes in the rotated domain.

Queries become int8 with one scale each, and so does the grid: a logit is an integer dot product times the
scales of key, query and grid. Rounding costs far less than the codes themselves: below 1 % of their error
at 2 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .higgs_encode import decode_ref
from .higgs_layout import BLOCK_TOKENS, SELECTORS, GridTables, rounded_grid
from .higgs_selector import mean_rows_ref, selector_codes_ref
from .rotate import make_rotate, rotation


def score_ref(
    kind: str,
    q: np.ndarray,
    blocks: np.ndarray,
    n_tokens: int,
    factor: float,
    grid: np.ndarray,
    mean_grid: np.ndarray | None = None,
    mean: np.ndarray | None = None,
    *,
    signs: bool = False,
    rounding: str | None = None,
) -> np.ndarray:
    """Logits factor * q . (key + mean) of the keys that blocks stand for; -inf beyond n_tokens. In float64.

    Shapes: q [G, D], blocks uint8 [B, bytes], mean [D] -> [G, 64 B]. `rounding`: as kernels round, "int8"
    queries and grids to bytes, "tables" grids and a query's products with their points.
    """
    head_dim = q.shape[1]
    rotated = q.astype(np.float64) @ rotation(head_dim, signs).T.astype(np.float64)
    step = np.abs(rotated).max(axis=1, keepdims=True) / 127
    as_int8 = np.rint(rotated / np.where(step > 0, step, 1)) * step if rounding else rotated
    if rounding:
        grid, mean_grid = rounded_grid(grid), None if mean_grid is None else rounded_grid(mean_grid)
    codes, scales = selector_codes_ref(kind, blocks, head_dim)
    if rounding == "tables":
        dots = dots_by_tables(rotated, grid, codes) * scales.astype(np.float64)
    else:
        dots = as_int8 @ decode_ref(codes, scales, grid, rotated=True).T
    if mean_grid is not None:
        dots = dots + as_int8 @ mean_rows_ref(kind, blocks, head_dim, mean_grid).T
    logits = np.full((len(q), len(blocks) * BLOCK_TOKENS), -np.inf)
    offset = 0 if mean is None else (q.astype(np.float64) @ mean.astype(np.float64))[:, None]
    logits[:, :n_tokens] = (dots[:, :n_tokens] + offset) * factor
    return logits


def dots_by_tables(rotated: np.ndarray, grid: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Dot products of queries with the points that codes name, as tables of bytes find them; float64.

    A product is step * (b - 127.5), the step 1 / 127.5 of a query's largest; the grid's second half mirrors
    the first. Bytes are added as averages of two, rounded up; what that adds on the average is taken off.

    Shapes: rotated [G, D], grid [256, dim], codes [n, D / dim] -> [G, n].
    """
    n_codes = codes.shape[1]
    products = rotated.reshape(len(rotated), n_codes, -1) @ grid[: len(grid) // 2].T
    step = np.abs(products).max(axis=(1, 2), keepdims=True) / 127.5
    products = np.rint(products / np.where(step > 0, step, 1) + 127.5).astype(int)
    table = np.concatenate([products, 255 - products], axis=2)
    found = np.zeros((len(rotated), len(codes), n_codes + n_codes % 2), int)
    for i in range(n_codes):
        found[:, :, i] = table[:, i, codes[:, i]]
    averages = (found[:, :, 0::2] + found[:, :, 1::2] + 1) // 2
    return 2 * step[:, :, 0] * (averages.sum(axis=2) - (127.5 / 2 + 0.25 / 2) * n_codes)


def query_bytes(kind: str, head_dim: int) -> int:
    """Bytes of one query as make_score_blocks reads it."""
    from ..cpu.query_record import query_layout

    return query_layout(SELECTORS[kind], head_dim)[2]


def make_quantise_query(kind: str, head_dim: int, signs: bool = False) -> Any:
    """An inline quantise_query(record, q, mean, factor, tables, scratch): float32 [D] -> one query record.

    Logits will be factor * q . (key + mean); mean 0: none. `tables`: of the grid. `scratch`: 8 D bytes. The G
    queries of a head lie query_bytes(kind, head_dim) apart.
    """
    from ..cpu import vector_ops as v
    from ..cpu.query_record import FACTOR, OFFSET, STEPS_FACTOR, query_layout, scores_by_tables
    from ..cpu.query_tables import STEP, make_put_tables
    from ..cpu.rough_exponential import STEPS

    at_tables, _, record_bytes = query_layout(SELECTORS[kind], head_dim)
    rotate, by_tables = make_rotate(head_dim, False, signs), scores_by_tables()
    needs_int8 = not by_tables or SELECTORS[kind].mean_grid is not None
    put_tables, step, steps = make_put_tables(kind, head_dim), np.float32(STEP), np.float32(STEPS)
    at_offset, at_factor, at_steps_factor = OFFSET, FACTOR, STEPS_FACTOR
    at_grid_step = GridTables(SELECTORS[kind].dim, 256).step
    put_int8 = _make_put_int8(kind, head_dim)

    @v.inline
    def quantise_query(record: int, q: int, mean: int, factor: float, tables: int, scratch: int) -> None:
        offset = v.zero()
        if mean:
            for i in range(0, head_dim * 4, 64):
                offset = v.fma(v.load_f32(q + i), v.load_f32(mean + i), offset)
        rotate(scratch, q)
        if needs_int8:
            for i in range(0, record_bytes, 64):
                v.store_f32(record + i, v.zero())
            put_int8(record, factor, scratch)
        if by_tables:
            table_factor = put_tables(record + at_tables, scratch, tables) * step * factor
            v.put_f32(record + at_factor, table_factor)
            v.put_f32(record + at_steps_factor, table_factor * v.get_f32(tables + at_grid_step) * steps)
        v.put_f32(record + at_offset, v.hsum(offset) * factor)

    return quantise_query


def _make_put_int8(kind: str, head_dim: int) -> Any:
    """An inline put_int8(record, factor, rotated): the codes of a query, and what a header says of them.

    `rotated`: float32 [D], and room for D bytes behind.
    """
    from ..cpu import vector_ops as v
    from ..cpu.query_record import query_layout, scores_by_tables
    from ..cpu.simd import FEATURES

    selector = SELECTORS[kind]
    at_codes, at_means, _ = query_layout(selector, head_dim)
    dim, has_means, has_codes = selector.dim, selector.mean_grid is not None, not scores_by_tables()
    planes, n_subvectors = FEATURES.avx512_vbmi, head_dim // dim

    @v.inline
    def put_int8(record: int, factor: float, rotated: int) -> None:
        largest = v.zero()
        for i in range(0, head_dim * 4, 64):
            largest = v.vmax(v.vabs(v.load_f32(rotated + i)), largest)
        step = v.hmax(largest) * np.float32(1 / 127)
        inverse = v.splat(np.float32(1) / step if step > np.float32(1e-30) else np.float32(0))
        codes = rotated + head_dim * 4
        for i in range(0, head_dim, 16):
            v.store_i8(codes + i, v.mul(v.load_f32(rotated + i * 4), inverse))
        total = 0
        for s in range(n_subvectors):
            for d in range(dim):
                code = v.get_u8(codes + s * dim + d)
                total += code - 256 if code > 127 else code
                place = (s // 4 * dim + d) * 4 + s % 4 if planes else s * dim + d
                if has_codes:
                    v.put_u8(record + at_codes + place, code)
        if has_means:
            for s in range(head_dim // 2):
                for d in range(2):
                    vector, j = s // 8, s % 8
                    place = (vector * 2 + d) * 8 + j if planes else (vector * 4 + j % 4) * 8 + j // 4 * 4 + d
                    v.put_u8(record + at_means + place, v.get_u8(codes + s * 2 + d))
        v.put_f32(record, step * factor)
        v.put_i32(record + 8, -127 * total)
        v.put_f32(record + 12, np.float32(-0.5) * np.float32(total))
        v.put_f32(record + 16, np.float32(-127.5) * np.float32(total))

    return put_int8


def make_score_blocks(kind: str, head_dim: int, group: int) -> Any:
    """An inline score_blocks(queries, blocks, first_block, last_block, logits, logits_stride, maxima, tables,
    mean_tables).

    Writes logits[g][t], float32 rows logits_stride bytes apart, for the tokens t of blocks first_block ..
    last_block - 1 of one head (whose block 0 lies at `blocks`), all of them full. maxima[g] becomes the
    largest of them, -inf of none. `queries`: G records of quantise_query.
    """
    from ..cpu import codeword_dots, codeword_tables, codeword_tiles
    from ..cpu.query_record import scores_by_tables, scores_on_registers

    on_vectors = codeword_tables if scores_by_tables() else codeword_dots
    unit = codeword_tiles if scores_on_registers(head_dim, group) else on_vectors
    return unit.make_block_scores(kind, head_dim, group)


def higgs_score_cpu(kind: str, head_dim: int, group: int, signs: bool) -> Any:
    """Logits of the queries of several heads. Threads share the blocks of every head.

    Args: logits, logits_stride (between queries), maxima, q, means, factor*, blocks, head_stride (of blocks),
    n_heads, n_blocks*, tables, mean_tables, scratch, scratch_stride, logits_head_stride.
    Shapes: logits float32 [n_heads][G][64 n_blocks], maxima float32 [n_heads][threads][G], q float32
    [n_heads][G][D], means float32 [n_heads][D] or 0. Scratch of a thread: G * query_bytes + 8 D bytes.
    """
    from ..cpu import vector_ops as v

    quantise_query = make_quantise_query(kind, head_dim, signs)
    score_blocks = make_score_blocks(kind, head_dim, group)
    record_bytes = query_bytes(kind, head_dim)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        logits, logits_stride, maxima = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        q, means, factor = v.get_i64(args + 24), v.get_i64(args + 32), v.get_f32(v.get_i64(args + 40))
        blocks, head_stride, n_heads = v.get_i64(args + 48), v.get_i64(args + 56), v.get_i64(args + 64)
        n_blocks = v.get_i64(v.get_i64(args + 72))
        tables, mean_tables = v.get_i64(args + 80), v.get_i64(args + 88)
        queries = v.get_i64(args + 96) + thread * v.get_i64(args + 104)
        scratch, logits_head_stride = queries + group * record_bytes, v.get_i64(args + 112)
        first, last = v.share(n_blocks, thread, n_threads, 0)
        for head in range(n_heads):
            mean = means + head * head_dim * 4 if means else 0
            for g in range(group):
                source = q + (head * group + g) * head_dim * 4
                quantise_query(queries + g * record_bytes, source, mean, factor, tables, scratch)
            score_blocks(
                queries,
                blocks + head * head_stride,
                first,
                last,
                logits + head * logits_head_stride,
                logits_stride,
                maxima + (head * n_threads + thread) * group * 4,
                tables,
                mean_tables,
            )

    return kernel
