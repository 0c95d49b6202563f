"""Records a decode step's attention to the best pages: append; score, rank and select, and see what a cache
lacks; bring the rows together, and attend to them.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.page_gather import BLOCK_BYTES
from ..kernels.page_scores import UNITS
from ..kernels.select_topk_cuda import candidates_stride
from ..ops import ELEMENT_BYTES, Buffer, KvRows
from .device_array import DeviceArray
from .kernel_choice import BLOCKS_AT_ONCE
from .page_pools import PageRows
from .record_attention import Queries, append_rows, record_decode_attention, strides

if TYPE_CHECKING:
    from .recorder import CudaRecorder


def record_pages(
    recorder: CudaRecorder, out: Buffer, q: Buffer, k: Buffer, v: Buffer, by: Buffer, rows: PageRows
) -> None:
    """See Ops.attend_pages."""
    layer, shape = recorder.in_stage.layer, rows.shape
    recorder.stage("select", layer)
    append_rows(recorder, rows.rows, k, v)
    append_rows(recorder, rows.ring, k, v, shape.n_sinks, shape.ring_len)
    step = _Step(recorder, rows)
    step.measure()
    asking = by
    if shape.has_boxes:
        step.digest()
    elif shape.n_channels:
        step.keep_channels(k)
        asking = step.project(by, shape.group)
    step.select(asking)
    if rows.most_places:
        step.recall()
    recorder.stage("fetch", layer)
    gathered = step.gather()
    recorder.stage("attend", layer)
    step.attend(out, q, gathered)
    step.count()


class _Step:
    """One layer's attention under recording: sizes and scratch that its launches share. A segment is a KV
    head of a row of the batch.
    """

    def __init__(self, recorder: CudaRecorder, rows: PageRows) -> None:
        self.recorder, self.rows, self.shape = recorder, rows, rows.shape
        self.batch, self.capacity = recorder.device_batch, recorder.capacity
        self.n_heads, self.segments = recorder.n_kv_heads, recorder.capacity * recorder.n_kv_heads
        n_units = max(1, rows.n_tokens // rows.shape.page)
        self.width, self.n_parts = -(-n_units // 4) * 4, -(-n_units // UNITS)
        self.sizes, self.budgets, self.lengths, self.lasts = (
            self._scratch(name, self.segments, np.int64) for name in ("sizes", "budgets", "lengths", "lasts")
        )
        self.firsts, self.ends, self.residents = (
            self._scratch(name, self.capacity, np.int64) for name in ("firsts", "ends", "residents")
        )
        self.totals = self._scratch("totals", 2, np.int64)
        self.ids = self._scratch("ids", self.segments * rows.most_pages, np.int32)
        self.weights = self._scratch("weights", self.segments * self.width, np.float32)
        self.fresh = self._scratch("fresh", self.segments * rows.most_places, np.int32)
        self.n_fresh, self.n_filled = self.budgets, self.budgets  # without a cache
        if rows.most_places:
            self.n_fresh, self.n_filled = (
                self._scratch(name, self.segments, np.int64) for name in ("n_fresh", "n_filled")
            )

    def _scratch(self, name: str, n: int, dtype: type[np.generic]) -> DeviceArray:
        return self.recorder.scratch(f"page_{name}", n, dtype)

    def measure(self) -> None:
        shape, batch, wanted = self.shape, self.batch, self.rows.wanted
        places = self.rows.places if self.rows.cache else wanted
        self.recorder.launch(
            kernel("page_lengths", "page_lengths_cuda"),
            (-(-self.capacity // 128), 1),
            *(self.sizes, self.budgets, self.lengths, self.firsts, self.ends, self.residents, self.totals),
            *(wanted, places, batch.slots, batch.positions, batch.n_rows, self.capacity, self.n_heads),
            *(shape.group, shape.n_sinks, shape.window, shape.page, int(shape.proxy == "key")),
        )

    def digest(self) -> None:
        """Of pages that the new tokens complete."""
        shape, rows, batch = self.shape, self.rows, self.batch
        self.recorder.launch(
            kernel("page_digests", "page_digests_cuda", shape.head_dim, shape.kind, shape.proxy == "centred"),
            (self.n_heads, self.capacity),
            *(rows.proxies, *self._proxy_strides, rows.ring.k, *strides(rows.ring)),
            *(shape.n_sinks, shape.ring_len, shape.page, batch.slots, batch.positions, batch.n_rows),
        )

    @property
    def _proxy_strides(self) -> tuple[int, int]:
        """In numbers, between slots and heads."""
        head = self.rows.proxies.shape[2] * self.rows.proxy_width
        return self.n_heads * head, head

    def project(self, x: Buffer, group: int) -> Buffer:
        """The channels of every head, `group` of which share a KV head."""
        rows, head_dim, width = self.rows, self.shape.head_dim, self.rows.proxy_width
        n_heads = x.width // head_dim
        out = self._scratch(f"channels_{n_heads}", self.capacity * n_heads * width, np.float32)
        head = head_dim * width
        self.recorder.launch(
            kernel("page_project", "page_project_cuda", head_dim),
            (n_heads, self.capacity),
            *(out, x.data, x.width, rows.skew, self.n_heads * head, head, self.batch.slots, x.n_rows),
            *(width, group),
        )
        return Buffer(out, n_heads * width, x.n_rows)

    def keep_channels(self, k: Buffer) -> None:
        """Those of the new keys, which a kernel for keys and values writes as both."""
        rows, made = self.rows, self.project(k, 1)
        self.recorder.launch(
            kernel("kv_append", "kv_append_cuda", self.shape.kind),
            (-(-made.width // 1024), self.capacity),
            *(rows.proxies, rows.proxies, *self._proxy_strides, made.data, made.data, made.width),
            *(self.n_heads, rows.proxy_width, self.batch.slots, self.batch.positions, made.n_rows, 0, 0),
        )

    def select(self, q: Buffer) -> None:
        """The best pages of every head."""
        shape, rows, launch = self.shape, self.rows, self.recorder.launch
        n_heads = self.recorder.n_heads
        n_queries = self.capacity * n_heads
        logits = self._scratch("logits", n_queries * self.width, np.float32)
        parts = self._scratch("parts", n_queries * self.n_parts * 2, np.float32)
        lse, counts = (
            self._scratch("lse", n_queries, np.float32),
            self._scratch("counts", n_queries, np.int64),
        )
        stride = candidates_stride(self.width)
        candidates = self._scratch("candidates", self.segments * stride, np.uint32)
        scored: tuple[Any, ...] = rows.proxies, *self._proxy_strides
        if shape.proxy == "key":
            scored = rows.rows.k, *strides(rows.rows)
        launch(
            kernel("page_scores", "page_scores_cuda", q.width // n_heads, shape.kind, shape.has_boxes),
            (self.n_parts, self.segments),
            *(logits, self.width, parts, self.n_parts, q.data, q.width, *scored, self.batch.slots),
            *(self.firsts, self.lengths, self.ends, self.batch.n_rows, self.n_heads, shape.group),
            shape.head_dim**-0.5,
        )
        if shape.alpha < inf:
            launch(
                kernel("page_project", "page_near_cuda"),
                (self.capacity, 1),
                *(self.budgets, self.lengths, logits, self.width, parts, self.n_parts, shape.alpha),
                *(self.batch.n_rows, self.n_heads, shape.group),
            )
        launch(
            kernel("yakv_tail_cuda", "log_sum_exp_cuda"),
            (-(-n_queries // 4), 1),
            *(lse, parts, self.n_parts, parts, 0, 0, self.totals.part(1, 1)),
        )
        launch(
            kernel("select_topk_cuda", "rank_cuda", shape.rule, shape.group),
            (-(-self.width // 1024), self.segments),
            *(self.weights, self.width, logits, self.width, lse, self.lengths),
        )
        launch(
            kernel("select_topk_cuda", "select_topk_cuda"),
            (self.segments, 1),
            *(self.ids, rows.most_pages, counts, self.weights, self.width, self.sizes, self.budgets),
            *(candidates, stride, self.totals),
        )

    def recall(self) -> None:
        """Which pages of the cache give way."""
        rows, most_pages, most_places = self.rows, self.rows.most_pages, self.rows.most_places
        found, missing, targets = (
            self._scratch(name, self.segments * most_pages, np.int32)
            for name in ("found", "missing", "targets")
        )
        order = self._scratch("order", self.segments * most_places, np.float32)
        self.recorder.launch(
            kernel("page_recall", "page_recall_cuda"),
            (self.segments, 1),
            *(rows.recalled, self.n_heads * most_places, most_places, rows.places, self.batch.slots),
            *(self.batch.n_rows, self.n_heads, self.ids, most_pages, self.budgets, self.weights, self.width),
            *(self.fresh, most_places, self.n_fresh, self.n_filled, found, order, missing, targets),
        )

    def gather(self) -> KvRows:
        """What a step attends to, a slot for each segment."""
        shape, rows, batch = self.shape, self.rows, self.batch
        row_bytes = shape.head_dim * ELEMENT_BYTES[shape.kind]
        most_rows = shape.most_rows(rows.n_tokens, rows.most_pages)
        if rows.cache:  # where a file says so, a page lies in all places
            most_rows = shape.ring_places + rows.most_places * shape.page
        head_bytes = -(-most_rows // 16) * 16 * row_bytes
        k, v = (
            self._scratch(name, self.segments * head_bytes // 4, np.uint32)
            for name in ("gathered_k", "gathered_v")
        )

        def in_words(of: KvRows | None) -> tuple[Any, ...]:
            return (of.k, of.v, of.slot_bytes // 4, of.head_bytes // 4) if of else (None, None, 0, 0)

        pages, n_pages = (rows.recalled, rows.most_places) if rows.cache else (self.ids, rows.most_pages)
        self.recorder.launch(
            kernel("page_gather", "page_gather_cuda", row_bytes, rows.cache is not None),
            (min(BLOCKS_AT_ONCE, -(-2 * self.segments * head_bytes // BLOCK_BYTES)), 1),
            *(k, v, head_bytes // 4, *in_words(rows.rows), *in_words(rows.ring), *in_words(rows.cache)),
            *(batch.slots, batch.n_rows, self.n_heads, self.sizes, self.residents, self.n_filled, self.lasts),
            *(pages, self.n_heads * n_pages, n_pages, self.fresh, rows.most_places),
            *(shape.n_sinks, shape.ring_len, shape.page),
        )
        return KvRows(k, v, head_bytes, head_bytes, shape.kind)

    def attend(self, out: Buffer, q: Buffer, rows: KvRows) -> None:
        """Every segment by itself, for segments may read different numbers of rows."""
        width = q.width // self.n_heads
        present: Any = self.totals

        def of_segments(x: Buffer) -> Buffer:
            return Buffer(x.data.reshaped((self.segments, width)), width, present)

        sizes = self.segments, self.shape.group, 1
        queries = Queries(of_segments(out), of_segments(q), self.recorder.numbers, self.lasts, *sizes)
        record_decode_attention(self.recorder, queries, rows)

    def count(self) -> None:
        batch = self.batch
        self.recorder.launch(
            kernel("page_lengths", "page_count_cuda"),
            (1, 1),
            *(self.rows.counters, self.lasts, self.budgets, self.n_fresh, batch.positions, batch.n_rows),
            *(self.n_heads, self.shape.page),
        )
