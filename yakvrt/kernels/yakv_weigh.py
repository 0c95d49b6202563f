"""What the keys of a run of blocks weigh in a YAKV decode step: exponentials of their scores, relative to one
logit per query and run. See yakv_tail.py, which reads them.

Where scores come from tables of the query (codeword_tables.py), they become weights in registers, in 16 bits
and relative to a logit that is guessed (codeword_weights.py). Where these bits or the guess do not do, which
shows, logits are written down first, as everywhere else.
"""

from __future__ import annotations

from math import exp
from typing import Any

import numpy as np

from .higgs_layout import SELECTORS
from .higgs_score import make_score_blocks, query_bytes
from .yakv_layout import BLOCKS_PER_RUN, YakvShape
from .yakv_tail import LEAST

RUN_BYTES = BLOCKS_PER_RUN * 256  # of the logits of a query
GUESS = 20.0  # of the largest logit of a run, above that of the mean key
# How far off it may lie: a run that is nothing beside others, by e^-35, still is when its weight is cut off
# at LEAST, and so is a weight in its run.
REACH = -LEAST - 35


def weigh_scratch_bytes(group: int) -> int:
    """Scratch of weigh_run."""
    return group * RUN_BYTES + BLOCKS_PER_RUN * 64 + -(-group * 8 // 64) * 64


def make_weigh_run(shape: YakvShape) -> Any:
    """An inline weigh_run(queries, blocks, begin, end, out, stride, cell, sums, sums_stride, tables,
    mean_tables, scratch): what blocks begin .. end - 1 of a head weigh, whose block 0 lies at `blocks`.

    `queries`: G records of quantise_query. Shapes, of one head: out as weights, cell as a run of run_stats,
    sums as a run of block_sums in yakv_score_cpu.
    """
    from ..cpu import vector_ops as v
    from ..cpu.query_record import scores_by_tables

    weigh_logits = _make_weigh_logits(shape)
    if not scores_by_tables() or shape.rule == "mean" or SELECTORS[shape.selector].mean_grid:
        return weigh_logits
    weigh_steps = _make_weigh_steps(shape)

    @v.inline
    def weigh_run(
        queries: int,
        blocks: int,
        begin: int,
        end: int,
        out: int,
        stride: int,
        cell: int,
        sums: int,
        sums_stride: int,
        tables: int,
        mean_tables: int,
        scratch: int,
    ) -> None:
        if not weigh_steps(queries, blocks, begin, end, out, stride, cell, sums, sums_stride, scratch):
            weigh_logits(
                queries,
                blocks,
                begin,
                end,
                out,
                stride,
                cell,
                sums,
                sums_stride,
                tables,
                mean_tables,
                scratch,
            )

    return weigh_run


def make_ask_for_blocks(shape: YakvShape) -> Any:
    """An inline ask_for_blocks(blocks, begin, end): prefetches the first of these blocks, for weigh_run,
    which asks for the others.
    """
    from ..cpu import vector_ops as v
    from ..cpu.codeword_tables import PREFETCH_BYTES

    block_bytes, asked_bytes = SELECTORS[shape.selector].block_bytes(shape.head_dim), PREFETCH_BYTES

    @v.inline
    def ask_for_blocks(blocks: int, begin: int, end: int) -> None:
        start = blocks + begin * block_bytes
        for line in range(0, min((end - begin) * block_bytes, asked_bytes), 64):
            v.prefetch(start + line)

    return ask_for_blocks


def _make_weigh_steps(shape: YakvShape) -> Any:
    """An inline weigh_steps(...) as weigh_run, without tables, -> whether it is right."""
    from ..cpu import vector_ops as v
    from ..cpu.codeword_weights import make_block_weights, make_largest_scale
    from ..cpu.query_record import MULTIPLIER, OFFSET, SHIFT, STEPS_FACTOR
    from ..cpu.rough_exponential import STEPS

    group, head_dim, kind, totals_bytes = shape.group, shape.head_dim, shape.selector, 64 * BLOCKS_PER_RUN
    record_bytes, blocks_per_run = query_bytes(kind, head_dim), BLOCKS_PER_RUN
    above = round(GUESS * STEPS)
    block_weights = make_block_weights(kind, head_dim, group, above, round(LEAST * STEPS))
    largest_scale, guess = make_largest_scale(kind, head_dim), np.float32(above / STEPS)
    # of a run, whose largest weight is 1 / 1024 of the sum at least
    least_sum, most_sum = np.float32(1024 * exp(-REACH)), np.float32(exp(REACH))
    # a code adds less than 64 to a sum: half of a byte, less 127.5 / 2
    free_bits = 15 - (64 * head_dim // SELECTORS[kind].dim - 1).bit_length()
    at_offset, at_factor, at_multiplier, at_shift = OFFSET, STEPS_FACTOR, MULTIPLIER, SHIFT

    @v.inline
    def weigh_steps(
        queries: int,
        blocks: int,
        begin: int,
        end: int,
        out: int,
        stride: int,
        cell: int,
        sums: int,
        sums_stride: int,
        scratch: int,
    ) -> bool:
        totals, extremes, n_blocks = scratch, scratch + group * totals_bytes, end - begin
        scale = max(largest_scale(blocks, begin, end), np.float32(1e-8))
        for g in range(group):
            record = queries + g * record_bytes
            unit = v.get_f32(record + at_factor) * scale  # steps
            if not unit < np.float32(32768):
                return False
            shift, capacity = free_bits, np.float32(1 << free_bits)
            while capacity <= unit:
                shift, capacity = shift + 1, capacity * np.float32(2)
            multiplier = int(unit / capacity * np.float32(32768) + np.float32(0.5))
            v.put_i32(record + at_multiplier, min(multiplier, 32767))
            v.put_i32(record + at_shift, shift)
            for block in range(n_blocks, blocks_per_run):
                v.store_f32(totals + g * totals_bytes + block * 64, v.zero())
        block_weights(
            queries,
            blocks,
            begin,
            end,
            out + begin * 128,
            stride,
            totals,
            totals_bytes,
            extremes,
            np.float32(1) / scale,
        )
        right = True
        for g in range(group):
            record = queries + g * record_bytes
            of_blocks = v.load_sums(totals + g * totals_bytes)
            v.store_f32(sums + g * sums_stride, of_blocks)
            total = v.hsum(of_blocks)
            v.put_f32(cell + g * 8, v.get_f32(record + at_offset) + guess)
            v.put_f32(cell + g * 8 + 4, total)
            largest = max(-v.get_i32(extremes + g * 8), v.get_i32(extremes + g * 8 + 4) + 1)
            fits = largest << v.get_i32(record + at_shift) <= 32768
            right = right and fits and least_sum <= total and total <= most_sum
        return right

    return weigh_steps


def _make_weigh_logits(shape: YakvShape) -> Any:
    """weigh_run for scores of any size, relative to the largest of each run."""
    from ..cpu import vector_ops as v
    from ..cpu.rough_exponential import put_weights, weight_reference

    group, as_mean, blocks_per_run, run_bytes = shape.group, shape.rule == "mean", BLOCKS_PER_RUN, RUN_BYTES
    score_blocks, least = make_score_blocks(shape.selector, shape.head_dim, group), np.float32(LEAST)

    @v.inline
    def average(out: int, logits: int, n_bytes: int) -> None:
        """Of the queries."""
        share = v.splat(np.float32(1 / group))
        for j in range(0, n_bytes, 64):
            total = v.load_f32(logits + j)
            for g in range(1, group):
                total = v.add(total, v.load_f32(logits + g * run_bytes + j))
            v.store_f32(out + j, v.mul(total, share))

    @v.inline
    def weigh_run(
        queries: int,
        blocks: int,
        begin: int,
        end: int,
        out: int,
        stride: int,
        cell: int,
        sums: int,
        sums_stride: int,
        tables: int,
        mean_tables: int,
        scratch: int,
    ) -> None:
        totals, logits = scratch + group * run_bytes, scratch
        maxima, n_blocks = totals + blocks_per_run * 64, end - begin
        score_blocks(
            queries, blocks, begin, end, logits - begin * 256, run_bytes, maxima, tables, mean_tables
        )
        for g in range(group):
            reference = weight_reference(v.get_f32(maxima + g * 4))
            own, row = logits + g * run_bytes, out + g * stride + begin * 128
            for block in range(n_blocks, blocks_per_run):
                v.store_f32(totals + block * 64, v.zero())
            for block in range(n_blocks):
                total = v.zero()
                for j in range(block * 256, block * 256 + 256, 128):
                    first, second = v.load_f32(own + j), v.load_f32(own + j + 64)
                    # as they are stored: of a selected row nothing may be left in the tail
                    total = put_weights(row + j // 2, first, second, reference, least, total)
                v.store_f32(totals + block * 64, total)
            of_blocks = v.load_sums(totals)
            v.store_f32(sums + g * sums_stride, of_blocks)
            v.put_f32(cell + g * 8, reference)
            v.put_f32(cell + g * 8 + 4, v.hsum(of_blocks))
        if as_mean:
            average(out + group * stride + begin * 256, logits, n_blocks * 256)

    return weigh_run
