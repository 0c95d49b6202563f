"""Records a decode step's attention under YAKV: append, attend to the ring, score, select; fetch, and beside
it add the tail and encode the block that left the window; attend to the selected rows, merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.attend_fragments import head_blocks
from ..kernels.higgs_layout import BLOCK_TOKENS, SELECTORS, row_bytes
from ..kernels.higgs_query_cuda import query_words
from ..kernels.rotate import rotation_lanes
from ..kernels.select_topk_cuda import candidates_stride
from ..kernels.yakv_tail_cuda import BLOCKS
from ..ops import Buffer
from .kernel_choice import SCORE_TOKENS, decode_splits
from .record_codes import BlockRows, pool_words, record_codes
from .yakv_pools import RowPool, YakvRows

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
        self.n_segments, self.n_tokens = self.capacity * self.n_kv_heads, rows.n_blocks * BLOCK_TOKENS
        self.most = rows.most_selected
        self.n_splits = decode_splits(self.most, self.capacity, self.n_kv_heads, self.group)
        self.n_tail_parts = -(-rows.n_blocks // BLOCKS) if rows.shape.tail else 0
        self.n_partials = 1 + self.n_splits + self.n_tail_parts  # of the ring, selected rows, the tail
        self.scale = self.head_dim**-0.5
        n_queries, head_dim = self.capacity * self.n_heads, self.head_dim
        self.sums = self._scratch("sums", n_queries * self.n_partials * head_dim, np.float32)
        self.stats = self._scratch("stats", n_queries * self.n_partials * 2, np.float32)
        self.logits = self._scratch("logits", n_queries * self.n_tokens, np.float32)
        self.lse = self._scratch("lse", n_queries, np.float32)
        self.ids = self._scratch("ids", self.n_segments * self.most, np.int32)
        self.counts = self._scratch("counts", self.n_segments, np.int64)
        self.lengths = self._scratch("lengths", self.n_segments, np.int64)
        self.budgets = self._scratch("budgets", self.n_segments, np.int64)
        self.firsts, self.lasts = (self._scratch(x, self.capacity, np.int64) for x in ("firsts", "lasts"))
        self.totals = self._scratch("totals", 2, np.int64)

    def _scratch(self, name: str, n: int, dtype: type[np.generic]) -> Any:
        return self.recorder.scratch(f"yakv_{name}", n, dtype)

    def merge(self, out: Buffer, q: Buffer, k: Buffer, v: Buffer) -> None:
        self._partials(q, k, v, self.rows.tail_parts, counted=True)
        self.recorder.launch(
            kernel("merge_partials", "merge_partials_cuda", self.head_dim),
            (self.n_heads, self.capacity),
            *(out.data, out.width, self.sums, self.stats, self.n_partials, self.n_heads, q.n_rows),
        )

    def tail_errors(self, errors: Any, exact: Buffer, q: Buffer, k: Buffer, v: Buffer) -> None:
        self._partials(q, k, v, self.rows.whole_tail, counted=False)
        first_tail = self.n_partials - self.n_tail_parts
        self.recorder.launch(
            kernel("yakv_fit", "tail_errors_cuda", self.head_dim),
            (self.n_heads, 1),
            *(errors, exact.data, exact.width, self.sums, self.stats, first_tail, self.n_partials),
            *(self.n_heads, q.n_rows),
        )

    def _partials(self, q: Buffer, k: Buffer, v: Buffer, parts: DeviceArray, *, counted: bool) -> None:
        """parts: how much of the tail counts. counted: in the statistics."""
        self.recorder.stage("select", self.recorder.in_stage.layer)
        self._measure()
        self._attend_ring(q, k, v)
        self._score(q)
        self._select()
        places, held, n_missing = self.ids, self.rows.rows, None
        if self.rows.cached:
            self.recorder.stage("fetch", self.recorder.in_stage.layer)
            places, n_missing = self._fetch(self.rows.cached)
            held = self.rows.cached
        self.recorder.stage("attend", self.recorder.in_stage.layer)
        if counted:
            self.recorder.launch(
                kernel("yakv_fetch_cuda", "yakv_count_cuda"),
                (1, 1),
                *(self.rows.counters, self.counts, n_missing, int(n_missing is not None), self.n_kv_heads),
                q.n_rows,
            )
        if self.n_tail_parts:
            self._add_tail(parts)
        self._encode()
        self.recorder.join()
        self._attend_selected(q, places, held)

    def _measure(self) -> None:
        budget, shape = self.rows.budget, self.shape
        self.recorder.launch(
            kernel("yakv_leave_cuda", "yakv_lengths_cuda"),
            (-(-self.capacity // 128), 1),
            *(self.lengths, self.budgets, self.firsts, self.lasts, self.totals),
            *(self.batch.positions, self.batch.n_rows, self.capacity, self.n_kv_heads, self.group),
            *(shape.n_sinks, shape.window, budget.ratio, budget.at_least, budget.min_len),
        )

    def _ring(self) -> tuple[Any, ...]:
        """The ring's keys and values, and its strides in numbers."""
        head = self.rows.ring_places * self.head_dim
        return self.rows.ring_k, self.rows.ring_v, self.n_kv_heads * head, head

    def _attend_ring(self, q: Buffer, k: Buffer, v: Buffer) -> None:
        shape, batch = self.shape, self.batch
        self.recorder.launch(
            kernel("kv_append", "kv_append_cuda", shape.kind),
            (-(-k.width // 1024), self.capacity),
            *(*self._ring(), k.data, v.data, k.width, self.n_kv_heads, self.head_dim),
            *(batch.slots, batch.positions, k.n_rows, shape.n_sinks, shape.window + BLOCK_TOKENS),
        )
        self.recorder.launch(
            kernel("attend_decode_cuda", "attend_decode_cuda", self.head_dim, shape.kind, True),
            (self.n_kv_heads * head_blocks(self.group), self.capacity),
            *(self.sums, self.stats, 0, self.n_partials, 1, q.data, q.width, *self._ring()),
            *(batch.slots, batch.positions, q.n_rows, self.n_kv_heads, self.group, self.scale),
            *(shape.n_sinks, shape.window),
        )

    def _score(self, q: Buffer) -> None:
        """The logits of all indexed keys, and the normaliser of every query."""
        rows, shape, kind, head_dim = self.rows, self.shape, self.shape.selector, self.head_dim
        n_queries = self.capacity * self.n_heads
        queries = self._scratch("queries", n_queries * query_words(kind, head_dim), np.uint32)
        records = self._scratch("records", n_queries * 4, np.float32)
        self.recorder.launch(
            kernel("higgs_query_cuda", "higgs_query_cuda", kind, head_dim, shape.centred, False),
            (-(-n_queries // (128 // rotation_lanes(head_dim))), 1),
            *(queries, records, q.data, q.width, rows.means, self.n_kv_heads * head_dim, self.batch.slots),
            *(self.n_heads, self.group, self.scale, rows.selector_grid.byte_step, q.n_rows),
        )
        n_shares = -(-self.n_tokens // SCORE_TOKENS)
        parts = self._scratch("parts", n_queries * n_shares * 2, np.float32)
        head = rows.n_blocks * SELECTORS[kind].block_bytes(head_dim) // 4
        self.recorder.launch(
            kernel("higgs_score_cuda", "higgs_score_cuda", kind, head_dim, self.group),
            (n_shares, self.n_segments),
            *(self.logits, self.n_tokens, parts, n_shares, 0, queries, records, rows.selectors),
            *(self.n_kv_heads * head, head, self.batch.slots, self.n_kv_heads, self.lengths),
            *(*rows.selector_words, q.n_rows),
        )
        self.recorder.launch(
            kernel("yakv_tail_cuda", "log_sum_exp_cuda"),
            (-(-n_queries // 4), 1),
            *(self.lse, parts, n_shares, self.stats, self.n_partials, 1, self.totals.address + 8),
        )

    def _select(self) -> None:
        weights = self._scratch("weights", self.n_segments * self.n_tokens, np.float32)
        self.recorder.launch(
            kernel("select_topk_cuda", "rank_cuda", self.shape.rule, self.group),
            (-(-self.n_tokens // 1024), self.n_segments),
            *(weights, self.n_tokens, self.logits, self.n_tokens, self.lse, self.lengths),
        )
        stride = candidates_stride(self.n_tokens)
        candidates = self.recorder.scratch("candidates", self.n_segments * stride, np.uint32)
        self.recorder.launch(
            kernel("select_topk_cuda", "select_topk_cuda"),
            (self.n_segments, 1),
            *(self.ids, self.most, self.counts, weights, self.n_tokens, self.lengths, self.budgets),
            *(candidates, stride, self.totals),
        )

    def _directory(self) -> tuple[Any, ...]:
        rows, directory = self.rows, self.rows.directory
        assert rows.cached
        assert directory
        head = directory.shape[2]
        return directory, self.n_kv_heads * head, head, rows.cached.n_rows, self.batch.slots, self.n_kv_heads

    def _pool(self, pool: RowPool) -> tuple[Any, ...]:
        return pool_words(self.rows, pool, self.n_kv_heads)

    def _fetch(self, cached: RowPool) -> tuple[Any, Any]:
        """Brings what is missing into the cache, beside what is recorded up to the join. Returns: where every
        selected row lies, and how many were missing.
        """
        n_rows, segments = self.batch.n_rows, self.n_segments
        places, missing, targets = (
            self._scratch(name, segments * self.most, np.int32) for name in ("places", "missing", "targets")
        )
        n_missing = self._scratch("n_missing", segments, np.int64)
        self.recorder.launch(
            kernel("yakv_fetch_cuda", "yakv_fetch_cuda"),
            (segments, 1),
            *(*self._directory(), self.ids, self.most, self.counts, places, missing, targets, n_missing),
            n_rows,
        )
        size = row_bytes(self.head_dim, self.shape.k_format, self.shape.v_format)
        self.recorder.launch_beside(
            kernel("yakv_gather_cuda", "yakv_gather_cuda", size, False),
            (self.recorder.gather_blocks, 1),
            *(
                *self._pool(cached),
                *self._pool(self.rows.rows),
                self.batch.slots,
                self.n_kv_heads,
            ),
            *(missing, targets, self.most, n_missing, n_rows),
        )
        return places, n_missing

    def _attend_selected(self, q: Buffer, places: Any, held: RowPool) -> None:
        rows, shape = self.rows, self.shape
        formats = (shape.k_format, shape.v_format, shape.centred)
        self.recorder.launch(
            kernel("yakv_attend_cuda", "yakv_attend_cuda", self.head_dim, *formats),
            (self.n_kv_heads * self.n_splits * head_blocks(self.group), self.capacity),
            *(
                self.sums,
                self.stats,
                1,
                self.n_partials,
                self.n_splits,
                q.data,
                q.width,
                *self._pool(held),
            ),
            *(rows.k_grid.address("halves"), rows.v_grid.address("halves")),
            *(rows.means, self.n_kv_heads * self.head_dim, self.head_dim, self.logits, self.n_tokens),
            *(self.ids, places, self.most, self.counts, self.batch.slots, q.n_rows, self.n_kv_heads),
            *(self.group, self.scale),
        )

    def _add_tail(self, parts: DeviceArray) -> None:
        rows = self.rows
        head = rows.n_blocks * self.head_dim // 2
        self.recorder.launch(
            kernel("yakv_tail_cuda", "yakv_tail_cuda", self.group, self.head_dim),
            (self.n_tail_parts, self.n_segments),
            *(
                self.sums,
                self.stats,
                1 + self.n_splits,
                self.n_partials,
                self.logits,
                self.n_tokens,
                self.lse,
            ),
            *(self.lengths, self.ids, self.most, self.counts, rows.values, self.n_kv_heads * head, head),
            *(self.batch.slots, self.n_kv_heads, parts, self.batch.n_rows),
        )

    def _encode(self) -> None:
        """The block that left the window becomes codes and a mean value; a cache forgets its rows."""
        rows, shape, batch, head_dim = self.rows, self.shape, self.batch, self.head_dim
        heads, n_rows = self.n_kv_heads, batch.n_rows
        values_head = rows.n_blocks * head_dim // 2
        self.recorder.launch(
            kernel("yakv_leave_cuda", "yakv_leave_cuda", head_dim, shape.kind, shape.centred),
            (heads, self.capacity),
            *(rows.k_block, rows.v_block, rows.values, heads * values_head, values_head),
            *(rows.means, heads * head_dim, *self._ring(), self.firsts, self.lasts, batch.positions),
            *(batch.slots, n_rows, heads, shape.n_sinks, shape.window),
        )
        if rows.cached:
            self.recorder.launch(
                kernel("yakv_fetch_cuda", "yakv_forget_cuda"),
                (self.n_segments, 1),
                *(*self._directory(), self.firsts, self.lasts, n_rows),
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
            firsts=self.firsts,
            lasts=self.lasts,
            sources=self.recorder.zeros,
            n_rows=n_rows,
        )
        record_codes(self.recorder.launch, rows, heads, blocks)
