"""What a decode step does that reads the best pages, or tokens: score, rank and select, see what a cache
lacks, attend to what was brought together.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.page_scores import UNITS
from ..kernels.select_topk_cuda import candidates_stride
from ..ops import ELEMENT_BYTES, Buffer, KvRows
from .device_array import DeviceArray
from .record_attention import Queries, record_decode_attention, strides

if TYPE_CHECKING:
    from .chunk_pools import ChunkRows
    from .page_pools import PageRows
    from .paper_pools import PaperRows
    from .recorder import CudaRecorder

Rows = TypeVar("Rows", bound="PageRows | ChunkRows | PaperRows", covariant=True)


class PageStep(Generic[Rows]):
    """One layer's attention under recording: sizes and scratch that its launches share. A segment is a head
    that chooses, `group` query heads together, of a row of the batch.
    """

    def __init__(self, recorder: CudaRecorder, rows: Rows) -> None:
        self.recorder, self.rows = recorder, rows
        self.batch, self.capacity = recorder.device_batch, recorder.capacity
        self.n_heads = recorder.n_heads // rows.shape.group
        self.segments = recorder.capacity * self.n_heads
        n_units = max(1, rows.n_tokens // rows.shape.page)
        self.width, self.n_parts = -(-n_units // 4) * 4, -(-n_units // UNITS)
        self.sizes, self.budgets, self.lengths, self.lasts = (
            self.scratch(name, self.segments, np.int64) for name in ("sizes", "budgets", "lengths", "lasts")
        )
        self.firsts, self.ends, self.residents = (
            self.scratch(name, self.capacity, np.int64) for name in ("firsts", "ends", "residents")
        )
        self.totals = self.scratch("totals", 2, np.int64)
        self.ids = self.scratch("ids", self.segments * rows.most_pages, np.int32)
        self.weights = self.scratch("weights", self.segments * self.width, np.float32)
        self.fresh = self.scratch("fresh", self.segments * rows.most_places, np.int32)
        self.n_fresh, self.n_filled = self.budgets, self.budgets  # without a cache
        if rows.most_places:
            self.n_fresh, self.n_filled = (
                self.scratch(name, self.segments, np.int64) for name in ("n_fresh", "n_filled")
            )

    def gathered(self, most_rows: int) -> KvRows:
        """Memory for what a step attends to, up to so many rows of a segment, which is a slot of its own."""
        shape = self.rows.shape
        head_bytes = -(-most_rows // 16) * 16 * shape.head_dim * ELEMENT_BYTES[shape.kind]
        k, v = (
            self.scratch(name, self.segments * head_bytes // 4, np.uint32)
            for name in ("gathered_k", "gathered_v")
        )
        return KvRows(k, v, head_bytes, head_bytes, shape.kind)

    def scratch(self, name: str, n: int, dtype: type[np.generic]) -> DeviceArray:
        return self.recorder.scratch(f"page_{name}", n, dtype)

    def choose(self, logits: DeviceArray, parts: DeviceArray, n_parts: int) -> None:
        """Ranks by logits [segments][group][width], of whose softmax a query has so many parts."""
        shape, rows, launch = self.rows.shape, self.rows, self.recorder.launch
        n_queries, stride = self.capacity * self.recorder.n_heads, candidates_stride(self.width)
        lse, counts = (
            self.scratch("lse", n_queries, np.float32),
            self.scratch("counts", n_queries, np.int64),
        )
        candidates = self.scratch("candidates", self.segments * stride, np.uint32)
        launch(
            kernel("yakv_tail_cuda", "log_sum_exp_cuda"),
            (-(-n_queries // 4), 1),
            *(lse, parts, n_parts, parts, 0, 0, self.totals.part(1, 1)),
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

    def attend(self, out: Buffer, q: Buffer, rows: KvRows) -> None:
        """Every segment by itself, for segments may read different numbers of rows."""
        width = q.width // self.n_heads
        present: Any = self.totals

        def of_segments(x: Buffer) -> Buffer:
            return Buffer(x.data.reshaped((self.segments, width)), width, present)

        sizes = self.segments, self.rows.shape.group, 1
        queries = Queries(of_segments(out), of_segments(q), self.recorder.numbers, self.lasts, *sizes)
        record_decode_attention(self.recorder, queries, rows)

    def count(self) -> None:
        batch = self.batch
        self.recorder.launch(
            kernel("page_lengths", "page_count_cuda"),
            (1, 1),
            *(self.rows.counters, self.lasts, self.budgets, self.n_fresh, batch.positions, batch.n_rows),
            *(self.n_heads, self.rows.shape.page),
        )


def proxy_strides(step: PageStep[PageRows | ChunkRows]) -> tuple[int, int]:
    """In numbers, between slots and heads."""
    head = step.rows.proxies.shape[2] * step.rows.proxy_width
    return step.n_heads * head, head


def select(step: PageStep[PageRows | ChunkRows], q: Buffer) -> None:
    """The best pages of every head, by what stands for them."""
    shape, rows, launch = step.rows.shape, step.rows, step.recorder.launch
    n_heads = step.recorder.n_heads
    n_queries = step.capacity * n_heads
    logits = step.scratch("logits", n_queries * step.width, np.float32)
    parts = step.scratch("parts", n_queries * step.n_parts * 2, np.float32)
    scored: tuple[Any, ...] = rows.proxies, *proxy_strides(step)
    if shape.proxy == "key":
        scored = rows.rows.k, *strides(rows.rows)
    launch(
        kernel("page_scores", "page_scores_cuda", q.width // n_heads, shape.proxy_kind, shape.has_boxes),
        (step.n_parts, step.segments),
        *(logits, step.width, parts, step.n_parts, q.data, q.width, *scored, step.batch.slots),
        *(step.firsts, step.lengths, step.ends, step.batch.n_rows, step.n_heads, shape.group),
        shape.head_dim**-0.5,
    )
    if shape.alpha < inf:
        launch(
            kernel("page_project", "page_near_cuda"),
            (step.capacity, 1),
            *(step.budgets, step.lengths, logits, step.width, parts, step.n_parts, shape.alpha),
            *(step.batch.n_rows, step.n_heads, shape.group),
        )
    step.choose(logits, parts, step.n_parts)


def recall(step: PageStep[PageRows | ChunkRows]) -> None:
    """Which pages of the cache give way."""
    rows, most_pages, most_places = step.rows, step.rows.most_pages, step.rows.most_places
    found, missing, targets = (
        step.scratch(name, step.segments * most_pages, np.int32) for name in ("found", "missing", "targets")
    )
    order = step.scratch("order", step.segments * most_places, np.float32)
    step.recorder.launch(
        kernel("page_recall", "page_recall_cuda"),
        (step.segments, 1),
        *(rows.recalled, step.n_heads * most_places, most_places, rows.places, step.batch.slots),
        *(step.batch.n_rows, step.n_heads, step.ids, most_pages, step.budgets, step.weights, step.width),
        *(step.fresh, most_places, step.n_fresh, step.n_filled, found, order, missing, targets),
    )


def in_words(rows: KvRows | None) -> tuple[Any, ...]:
    """Keys, values, and strides of slots and heads in words of 4 bytes; None: no rows."""
    return (rows.k, rows.v, rows.slot_bytes // 4, rows.head_bytes // 4) if rows else (None, None, 0, 0)
