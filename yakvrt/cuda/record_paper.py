"""Records a decode step's attention under YAKV as its paper has it: append; score, rank and select; decode
the chosen tokens beside the exact ones, and attend to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.higgs_query_cuda import query_words
from ..kernels.paper_exact import BLOCK_BYTES
from ..kernels.rotate import rotation_lanes
from ..ops import ELEMENT_BYTES, Buffer, KvRows
from .kernel_choice import BLOCKS_AT_ONCE, SCORE_TOKENS
from .page_step import PageStep, in_words
from .paper_pools import SELECTOR, PaperRows
from .record_attention import append_rows

if TYPE_CHECKING:
    from .recorder import CudaRecorder


def record_paper(
    recorder: CudaRecorder, out: Buffer, q: Buffer, k: Buffer, v: Buffer, by: Buffer, rows: PaperRows
) -> None:
    """See Ops.attend_pages."""
    layer, shape = recorder.in_stage.layer, rows.shape
    recorder.stage("select", layer)
    append_rows(recorder, rows.rows, k, v)
    append_rows(recorder, rows.ring, k, v, shape.n_sinks, rows.ring_len)
    step = PageStep(recorder, rows)
    _measure(step)
    _select(step, by)
    _find_fresh(step)
    recorder.stage("fetch", layer)
    gathered = _gather(step)
    recorder.stage("attend", layer)
    step.attend(out, q, gathered)
    recorder.join()
    step.count()


def _measure(step: PageStep[PaperRows]) -> None:
    shape, rows, batch = step.rows.shape, step.rows, step.batch
    step.recorder.launch(
        kernel("paper_lengths", "paper_lengths_cuda"),
        (-(-step.capacity // 128), 1),
        *(step.sizes, step.budgets, step.lengths, step.ends, step.residents, step.totals),
        *(rows.wanted, rows.ends),
        *(batch.slots, batch.positions, batch.n_rows, step.capacity, step.n_heads),
        *(shape.group, shape.n_sinks),
    )


def _select(step: PageStep[PaperRows], q: Buffer) -> None:
    """The best tokens of every head, by their selectors."""
    shape, rows, batch, launch = step.rows.shape, step.rows, step.batch, step.recorder.launch
    head_dim, n_queries = shape.head_dim, step.capacity * step.recorder.n_heads
    queries = step.scratch("queries", n_queries * query_words(SELECTOR, head_dim), np.uint32)
    records = step.scratch("records", n_queries * 4, np.float32)
    launch(
        kernel("higgs_query_cuda", "higgs_query_cuda", SELECTOR, head_dim, False, False),
        (-(-n_queries // (128 // rotation_lanes(head_dim))), 1),
        *(queries, records, q.data, q.width, None, 0, batch.slots, step.recorder.n_heads, shape.group),
        *(head_dim**-0.5, rows.selector_grid.byte_step, q.n_rows),
    )
    n_parts = -(-rows.n_tokens // SCORE_TOKENS)
    logits = step.scratch("logits", n_queries * step.width, np.float32)
    parts = step.scratch("parts", n_queries * n_parts * 2, np.float32)
    head = rows.selectors.shape[2] * rows.selectors.shape[3]
    launch(
        kernel("higgs_score_cuda", "higgs_score_cuda", SELECTOR, head_dim, shape.group),
        (n_parts, step.segments),
        *(logits, step.width, parts, n_parts, 0, queries, records, rows.selectors, step.n_heads * head, head),
        *(batch.slots, step.n_heads, step.lengths, *rows.selector_grid.words, None, 0.0, batch.n_rows),
    )
    step.choose(logits, parts, n_parts)


def _gather(step: PageStep[PaperRows]) -> KvRows:
    """What a step attends to, a slot for each segment: nothing tells how much of it is exact."""
    shape, rows, batch, launch = step.rows.shape, step.rows, step.batch, step.recorder.launch
    row_bytes = shape.head_dim * ELEMENT_BYTES[shape.kind]
    found = step.gathered(rows.slot_tokens)
    to = found.k, found.v, found.head_bytes // 4
    launch(
        kernel("paper_exact", "paper_exact_cuda", row_bytes),
        (min(BLOCKS_AT_ONCE, -(-2 * step.segments * found.head_bytes // BLOCK_BYTES)), 1),
        *(*to, *in_words(rows.rows), *in_words(rows.ring), batch.slots, batch.positions),
        *(step.ends, batch.n_rows, step.n_heads, step.residents, step.budgets, step.lasts),
        *(shape.n_sinks, rows.ring_len),
    )
    tokens_of_a_block = 256 // rotation_lanes(rows.width)
    launch(
        kernel("paper_rows", "paper_rows_cuda", rows.width, shape.head_dim, shape.kind),
        (min(BLOCKS_AT_ONCE, -(-step.segments * rows.most_pages // tokens_of_a_block)), 1),
        *(*to, rows.codes, rows.scales, rows.slot_tokens),
        *(rows.row_grid.address("halves"), rows.table, batch.slots, batch.n_rows, step.n_heads),
        *(step.residents, step.budgets, step.ids, rows.most_pages, shape.n_sinks),
    )
    return found


def _find_fresh(step: PageStep[PaperRows]) -> None:
    """Beside what is recorded up to its join, for counting alone."""
    step.n_fresh = step.scratch("n_fresh", step.segments, np.int64)
    step.recorder.launch_beside(
        kernel("paper_fresh", "paper_fresh_cuda"),
        (step.capacity, 1),
        *(step.n_fresh, step.ids, step.rows.most_pages, step.budgets, step.batch.n_rows, step.n_heads),
        step.rows.n_tokens,
    )
