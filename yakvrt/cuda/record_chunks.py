"""Records a decode step's attention to the best chunks: append; score, rank and select, and see what a cache
lacks; compute keys and fetch values, bring the rows together, and attend to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..kernel_build.spec import kernel
from ..kernels.chunk_gather import BLOCK_BYTES
from ..kernels.chunk_values import THREADS
from ..ops import ELEMENT_BYTES, Buffer, KvRows
from .chunk_pools import ChunkRows
from .kernel_choice import BLOCKS_AT_ONCE
from .page_step import PageStep, in_words, recall, select
from .record_attention import append_rows, strides

if TYPE_CHECKING:
    from .recorder import CudaRecorder


def record_chunks(
    recorder: CudaRecorder, out: Buffer, q: Buffer, k: Buffer, v: Buffer, by: Buffer, rows: ChunkRows
) -> None:
    """See Ops.attend_pages."""
    layer, ring_len = recorder.in_stage.layer, rows.shape.ring_len(rows.n_tokens)
    recorder.stage("select", layer)
    append_rows(recorder, rows.rows, k, v)
    append_rows(recorder, rows.ring, k, v, 0, ring_len)
    step = PageStep(recorder, rows)
    _measure(step)
    select(step, by)
    recall(step)
    recorder.stage("fetch", layer)
    _fetch_values(step)
    _make_keys(step)
    recorder.join()
    gathered = _gather(step, ring_len)
    recorder.stage("attend", layer)
    step.attend(out, q, gathered)
    step.count()


def _measure(step: PageStep[ChunkRows]) -> None:
    rows, batch = step.rows, step.batch
    step.recorder.launch(
        kernel("chunk_lengths", "chunk_lengths_cuda"),
        (-(-step.segments // 128), 1),
        *(step.sizes, step.budgets, step.lengths, step.firsts, step.ends, step.totals, rows.counts),
        *(rows.wanted, rows.places, batch.slots, batch.n_rows, step.capacity, step.n_heads),
        *(step.rows.shape.group, rows.numbers.shape[2]),
    )


def _of_heads(step: PageStep[ChunkRows], n: int) -> tuple[int, int]:
    """Strides of slots and heads that have n numbers each."""
    return step.n_heads * n, n


def _places(step: PageStep[ChunkRows]) -> tuple[Any, ...]:
    """Which chunks lie in the cache, and which of them came."""
    rows = step.rows
    most_chunks, most_places = rows.numbers.shape[2], rows.most_places
    numbers = rows.numbers, *_of_heads(step, most_chunks)
    recalled = rows.recalled, *_of_heads(step, most_places)
    return *numbers, *recalled, step.fresh, most_places, step.n_filled


def _fetch_values(step: PageStep[ChunkRows]) -> None:
    """Beside what is recorded up to its join: the link is what it waits for."""
    rows, batch = step.rows, step.batch
    chunk_bytes = step.rows.shape.page * step.rows.shape.head_dim * ELEMENT_BYTES[step.rows.shape.kind]
    n_blocks = min(BLOCKS_AT_ONCE, -(-step.segments * rows.most_places // (THREADS // 32)))
    step.recorder.launch_beside(
        kernel("chunk_values", "chunk_values_cuda"),
        (n_blocks, 1),
        *(*in_words(rows.cache)[1:], *in_words(rows.rows)[1:], *_places(step)),
        *(batch.slots, batch.n_rows, step.n_heads, chunk_bytes // 16),
    )


def _make_keys(step: PageStep[ChunkRows]) -> None:
    rows, batch, shape = step.rows, step.batch, step.rows.shape
    rank, head_dim = rows.rank, shape.head_dim
    step.recorder.launch(
        kernel("low_rank_keys", "low_rank_keys_cuda", head_dim, shape.kind),
        (-(-rows.most_places // 4), step.segments),
        *(rows.cache.k, *strides(rows.cache), rows.left, rows.n_tokens * rank),
        *(rows.basis, *_of_heads(step, rank * head_dim), rank, rows.rope, *_places(step)),
        *(batch.slots, batch.n_rows, step.n_heads, shape.page),
    )


def _gather(step: PageStep[ChunkRows], ring_len: int) -> KvRows:
    """What a step attends to, a slot for each segment: without a prompt, all tokens."""
    shape, rows, batch = step.rows.shape, step.rows, step.batch
    row_bytes, found = shape.head_dim * ELEMENT_BYTES[shape.kind], step.gathered(rows.n_tokens)
    tables = [x for of in (rows.rows, rows.ring, rows.outliers, rows.cache) for x in in_words(of)]
    step.recorder.launch(
        kernel("chunk_gather", "chunk_gather_cuda", row_bytes),
        (min(BLOCKS_AT_ONCE, -(-2 * step.segments * found.head_bytes // BLOCK_BYTES)), 1),
        *(found.k, found.v, found.head_bytes // 4, rows.n_tokens, *tables, rows.counts),
        *(shape.outlier_chunks(rows.numbers.shape[2]), step.n_filled, step.lasts),
        *(batch.slots, batch.positions, batch.n_rows, step.n_heads, ring_len, shape.page),
    )
    return found
