"""Records a decode step's attention under YAKV: score, select, fetch where rows are cached, attend; then
merge, or measure the tail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.higgs_layout import row_bytes
from ..kernels.higgs_score import query_bytes
from ..kernels.yakv_attend import attend_rows_scratch_bytes
from ..kernels.yakv_layout import BLOCKS_PER_RUN
from ..kernels.yakv_score import score_scratch_bytes
from ..kernels.yakv_select import select_rows_scratch_bytes
from ..ops import Buffer
from .memory import padded
from .record_attention import partials_memory, record_merge

if TYPE_CHECKING:
    from .recorder import Recorder
    from .yakv_pools import YakvRows


def record_yakv(recorder: Recorder, out: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: YakvRows) -> None:
    """See Ops.attend_yakv."""
    partials, _ = _record_partials(recorder, q, k, v, rows)
    record_merge(recorder, out, partials)


def record_tail_errors(
    recorder: Recorder, errors: np.ndarray, exact: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: YakvRows
) -> None:
    """See Ops.yakv_tail_errors."""
    partials, counts = _record_partials(recorder, q, k, v, rows)
    recorder.tape.add(
        kernel("yakv_fit", "tail_errors_cpu", rows.shape.group, rows.shape.head_dim),
        errors,
        exact.data,
        exact.data.strides[0],
        *partials,
        counts,
        recorder.n_heads,
        recorder.batch.n_rows,
        recorder.memory.shared("partial_factors", recorder.memory.n_threads * 64),
    )


def _record_partials(
    recorder: Recorder, q: Buffer, k: Buffer, v: Buffer, rows: YakvRows
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Returns: the partial results of every query head, and how many rows of each KV head were selected."""
    memory, batch, tape, shape = recorder.memory, recorder.batch, recorder.tape, rows.shape
    layer = recorder.in_stage.layer
    group, head_dim, n_tokens = shape.group, shape.head_dim, 64 * rows.n_blocks
    partials = partials_memory(recorder)
    units = recorder.capacity * recorder.n_kv_heads
    n_runs = -(-rows.n_blocks // BLOCKS_PER_RUN)
    weights = memory.shared("yakv_weights", units * shape.weight_rows * n_tokens * 2)
    run_stats = memory.shared("yakv_run_stats", units * n_runs * group * 8)
    block_sums = memory.shared("yakv_block_sums", units * group * n_runs * BLOCKS_PER_RUN * 4)
    ids = memory.shared("yakv_ids", units * n_tokens * 4)
    counts = memory.shared("yakv_counts", units * 8)
    scale = memory.number(head_dim**-0.5)
    per_thread = padded(
        max(
            score_scratch_bytes(group, head_dim, query_bytes(shape.selector, head_dim)),
            select_rows_scratch_bytes(group, n_tokens),
            attend_rows_scratch_bytes(group, head_dim, n_tokens),
        ),
        64,
    )
    scratch = memory.shared("yakv_scratch", per_thread * memory.n_threads), per_thread
    q_copy, k_copy = memory.copy_bytes(q), memory.copy_bytes(k)
    recorder.stage("select", layer)
    tape.add(
        kernel("yakv_score", "yakv_score_cpu", *shape.parameters),
        rows.table,
        q.data,
        k.data,
        v.data,
        q.data.strides[0],
        k.data.strides[0],
        batch.slots,
        batch.positions,
        batch.n_rows,
        scale,
        weights,
        n_tokens * 2,
        run_stats,
        n_runs,
        block_sums,
        *partials,
        *scratch,
        q_copy,
        k_copy,
        counts,
    )
    budget = rows.budget.ratio, rows.budget.at_least, rows.budget.min_len
    tape.add(
        kernel("yakv_select", "yakv_select_cpu", group, shape.n_sinks, shape.window, shape.rule),
        rows.table,
        batch.positions,
        batch.n_rows,
        weights,
        n_tokens * 2,
        run_stats,
        n_runs,
        partials[1],
        ids,
        n_tokens * 4,
        counts,
        *budget,
        *scratch,
        barrier=bool(rows.n_places),  # attention waits for each head, fetching for all
    )
    places = ids
    if rows.n_places:
        places = memory.shared("yakv_places", units * n_tokens * 4)
        recorder.stage("fetch", layer)
        tape.add(
            kernel("yakv_fetch", "yakv_fetch_cpu", row_bytes(head_dim, shape.k_format, shape.v_format)),
            rows.table,
            batch.slots,
            batch.n_rows,
            ids,
            n_tokens * 4,
            counts,
            places,
        )
    recorder.stage("attend", layer)
    tape.add(
        kernel("yakv_attend", "yakv_attend_cpu", *shape.parameters),
        rows.attend_table,
        q.data,
        q.data.strides[0],
        batch.slots,
        batch.positions,
        batch.n_rows,
        scale,
        weights,
        n_tokens * 2,
        run_stats,
        n_runs,
        block_sums,
        *partials,
        ids,
        n_tokens * 4,
        counts,
        *scratch,
        q_copy,
        places,
        *budget,
    )
    return partials, counts
