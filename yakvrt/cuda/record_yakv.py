"""Records a decode step's attention under YAKV: append, attend to the ring; score and select; fetch, and
beside it add the tail and encode the block that left the window; attend to the selected rows, merge.

Rows from the host come in turns of some rows of the batch (record_yakv_turn.py): while those of one come, the
next is scored, and while those of the next come, the first attends to its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.attend_fragments import head_blocks
from ..kernels.higgs_layout import BLOCK_TOKENS
from ..kernels.rotate import rotation_lanes
from ..kernels.yakv_tail_cuda import BLOCKS
from ..ops import Buffer
from .kernel_choice import decode_splits, fetch_turns
from .record_codes import BlockRows, record_codes
from .record_yakv_turn import YakvTurn, cache_words
from .yakv_pools import YakvRows
from .yakv_scratch import yakv_scratch

if TYPE_CHECKING:
    from .device_array import DeviceArray
    from .recorder import CudaRecorder


def record_yakv(recorder: CudaRecorder, out: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: YakvRows) -> None:
    """See Ops.attend_yakv."""
    _Step(recorder, rows).merge(out, q, k, v)


def record_tail_errors(
    recorder: CudaRecorder, errors: Any, exact: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: YakvRows
) -> None:
    """See Ops.yakv_tail_errors."""
    _Step(recorder, rows).tail_errors(errors, exact, q, k, v)


class _Step:
    """One layer's attention under recording: sizes and scratch that its launches share."""

    def __init__(self, recorder: CudaRecorder, rows: YakvRows) -> None:
        self.recorder, self.rows, self.shape = recorder, rows, rows.shape
        self.batch, self.capacity = recorder.device_batch, recorder.capacity
        self.n_heads, self.n_kv_heads = recorder.n_heads, recorder.n_kv_heads
        self.group, self.head_dim = rows.shape.group, rows.shape.head_dim
        self.n_tokens, self.scale = rows.n_blocks * BLOCK_TOKENS, self.head_dim**-0.5
        n_splits = decode_splits(rows.most_selected, self.capacity, self.n_kv_heads, self.group)
        self.n_tail_parts = -(-rows.n_blocks // BLOCKS) if self.shape.tail else 0
        self.first_tail = 1 + n_splits  # of partial results: that of the ring, of selected rows, of the tail
        self.n_partials = self.first_tail + self.n_tail_parts
        self.held = yakv_scratch(recorder, rows, self.n_partials, self.n_tokens)
        n_turns = fetch_turns(self.capacity, rows.selector_bytes) if rows.cached else 1
        self.turn_rows = -(-self.capacity // n_turns)
        self.totals = recorder.scratch("yakv_totals", n_turns * 3, np.int64).reshaped((n_turns, 3))
        self.turns = [
            YakvTurn(
                recorder,
                rows,
                self.held.of_rows(first, min(self.turn_rows, self.capacity - first)),
                first,
                self.totals.part(i, 1),
                n_splits,
                self.n_partials,
            )
            for i, first in enumerate(range(0, self.capacity, self.turn_rows))
        ]

    def merge(self, out: Buffer, q: Buffer, k: Buffer, v: Buffer) -> None:
        self._partials(q, k, v, self.rows.tail_parts, counted=True)
        self.recorder.launch(
            kernel("merge_partials", "merge_partials_cuda", self.head_dim),
            (self.n_heads, self.capacity),
            *(out.data, out.width, self.held.sums, self.held.stats, self.n_partials, self.n_heads, q.n_rows),
        )

    def tail_errors(self, errors: Any, exact: Buffer, q: Buffer, k: Buffer, v: Buffer) -> None:
        self._partials(q, k, v, self.rows.whole_tail, counted=False)
        self.recorder.launch(
            kernel("yakv_fit", "tail_errors_cuda", self.head_dim),
            (self.n_heads, 1),
            *(errors, exact.data, exact.width, self.held.sums, self.held.stats, self.first_tail),
            *(self.n_partials, self.n_heads, q.n_rows),
        )

    def _partials(self, q: Buffer, k: Buffer, v: Buffer, parts: DeviceArray, *, counted: bool) -> None:
        """parts: how much of the tail counts. counted: in the statistics."""
        recorder, cached, layer = self.recorder, self.rows.cached, self.recorder.in_stage.layer
        recorder.stage("select", layer)
        self._measure()
        self._attend_ring(q, k, v)
        self._rotate_queries(q)
        for turn in self.turns:
            if turn.first:
                recorder.stage("select", layer)
            turn.select()
            if cached:
                recorder.stage("fetch", layer)
                turn.fetch(cached)
        recorder.stage("attend", layer)
        if counted:
            self._count(q.n_rows)
        if self.n_tail_parts:
            self._add_tail(parts)
        self._encode()
        for turn in self.turns:
            if cached:
                recorder.join()
            turn.attend(q)

    def _measure(self) -> None:
        budget, shape, held = self.rows.budget, self.shape, self.held
        self.recorder.launch(
            kernel("yakv_leave_cuda", "yakv_lengths_cuda"),
            (-(-self.capacity // 128), 1),
            *(held.lengths, held.budgets, held.firsts, held.lasts, self.totals, self.turn_rows),
            *(self.batch.positions, self.batch.n_rows, self.capacity, self.n_kv_heads, self.group),
            *(shape.n_sinks, shape.window, budget.ratio, budget.at_least, budget.min_len),
        )

    def _ring(self) -> tuple[Any, ...]:
        """The ring's keys and values, and its strides in numbers."""
        head = self.rows.ring_places * self.head_dim
        return self.rows.ring_k, self.rows.ring_v, self.n_kv_heads * head, head

    def _attend_ring(self, q: Buffer, k: Buffer, v: Buffer) -> None:
        shape, batch, held = self.shape, self.batch, self.held
        self.recorder.launch(
            kernel("kv_append", "kv_append_cuda", shape.kind),
            (-(-k.width // 1024), self.capacity),
            *(*self._ring(), k.data, v.data, k.width, self.n_kv_heads, self.head_dim),
            *(batch.slots, batch.positions, k.n_rows, shape.n_sinks, shape.window + BLOCK_TOKENS),
        )
        self.recorder.launch(
            kernel("attend_decode_cuda", "attend_decode_cuda", self.head_dim, shape.kind, True),
            (self.n_kv_heads * head_blocks(self.group), self.capacity),
            *(held.sums, held.stats, 0, self.n_partials, 1, q.data, q.width, *self._ring()),
            *(batch.slots, batch.positions, q.n_rows, self.n_kv_heads, self.group, self.scale),
            *(shape.n_sinks, shape.window),
        )

    def _rotate_queries(self, q: Buffer) -> None:
        """Into the domain of the codes."""
        rows, head_dim, n_queries = self.rows, self.head_dim, self.capacity * self.n_heads
        self.recorder.launch(
            kernel(
                *("higgs_query_cuda", "higgs_query_cuda", self.shape.selector, head_dim),
                *(self.shape.centred, False),
            ),
            (-(-n_queries // (128 // rotation_lanes(head_dim))), 1),
            *(self.held.queries, self.held.records, q.data, q.width, rows.means, self.n_kv_heads * head_dim),
            *(self.batch.slots, self.n_heads, self.group, self.scale, rows.selector_grid.byte_step, q.n_rows),
        )

    def _count(self, n_rows: Any) -> None:
        rows, held = self.rows, self.held
        self.recorder.launch(
            kernel("yakv_fetch_cuda", "yakv_count_cuda"),
            (1, 1),
            *(rows.counters, held.counts, held.n_missing, int(rows.cached is not None), self.n_kv_heads),
            n_rows,
        )

    def _add_tail(self, parts: DeviceArray) -> None:
        rows, held = self.rows, self.held
        head = rows.n_blocks * self.head_dim // 2
        self.recorder.launch(
            kernel("yakv_tail_cuda", "yakv_tail_cuda", self.group, self.head_dim),
            (self.n_tail_parts, self.capacity * self.n_kv_heads),
            *(held.sums, held.stats, self.first_tail, self.n_partials, held.logits, self.n_tokens, held.lse),
            *(held.lengths, held.ids, rows.most_selected, held.counts, rows.values, self.n_kv_heads * head),
            *(head, self.batch.slots, self.n_kv_heads, parts, self.batch.n_rows),
        )

    def _encode(self) -> None:
        """The block that left the window becomes codes and a mean value; a cache forgets its rows."""
        rows, shape, batch, held = self.rows, self.shape, self.batch, self.held
        heads, n_rows, head_dim = self.n_kv_heads, batch.n_rows, self.head_dim
        values_head = rows.n_blocks * head_dim // 2
        self.recorder.launch(
            kernel("yakv_leave_cuda", "yakv_leave_cuda", head_dim, shape.kind, shape.centred),
            (heads, self.capacity),
            *(rows.k_block, rows.v_block, rows.values, heads * values_head, values_head),
            *(rows.means, heads * head_dim, *self._ring(), held.firsts, held.lasts, batch.positions),
            *(batch.slots, n_rows, heads, shape.n_sinks, shape.window),
        )
        if rows.cached:
            self.recorder.launch(
                kernel("yakv_fetch_cuda", "yakv_forget_cuda"),
                (self.capacity * heads, 1),
                *(*cache_words(rows, heads), batch.slots, heads, held.firsts, held.lasts, n_rows),
            )
        block = BLOCK_TOKENS * head_dim
        blocks = BlockRows(
            rows.k_block,
            rows.v_block,
            slot_stride=heads * block,
            head_stride=block,
            n_rows_each=BLOCK_TOKENS,
            n_batch=self.capacity,
            slots=batch.slots,
            firsts=held.firsts,
            lasts=held.lasts,
            sources=self.recorder.zeros,
            n_rows=n_rows,
        )
        record_codes(self.recorder.launch, rows, heads, blocks)
