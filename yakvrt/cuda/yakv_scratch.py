"""Device memory that the launches of one layer's attention under YAKV share."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..kernels.higgs_query_cuda import query_words
from ..kernels.select_topk_cuda import candidates_stride
from .device_array import DeviceArray
from .kernel_choice import SCORE_TOKENS
from .yakv_pools import YakvRows

if TYPE_CHECKING:
    from .recorder import CudaRecorder


class YakvScratch(NamedTuple):
    """Of every row of a batch, or of some rows of it: all shapes begin with [B].

    Shapes: sums float32 [Hq, n_partials, D] and stats float32 [Hq, n_partials, 2] as merge_partials_cuda
    takes them; queries uint32 and records float32 [Hq, 4] of higgs_query_cuda; logits float32 [Hq, tokens],
    parts float32 [Hq, shares, 2] and lse float32 [Hq] of all indexed keys; weights float32 [Hk, tokens] and
    candidates uint32 of select_topk_cuda; ids, places, missing and targets int32 [Hk, most], of the selected
    rows and of those that are not resident; lengths, budgets, counts and n_missing int64 [Hk]; firsts and
    lasts int64, of the rows that the step indexes.
    """

    sums: DeviceArray
    stats: DeviceArray
    queries: DeviceArray
    records: DeviceArray
    logits: DeviceArray
    parts: DeviceArray
    lse: DeviceArray
    weights: DeviceArray
    candidates: DeviceArray
    ids: DeviceArray
    places: DeviceArray
    missing: DeviceArray
    targets: DeviceArray
    lengths: DeviceArray
    budgets: DeviceArray
    counts: DeviceArray
    n_missing: DeviceArray
    firsts: DeviceArray
    lasts: DeviceArray

    def of_rows(self, first: int, n: int) -> YakvScratch:
        return YakvScratch(*(array.part(first, n) for array in self))


def yakv_scratch(recorder: CudaRecorder, rows: YakvRows, n_partials: int, n_tokens: int) -> YakvScratch:
    """For the rows of a step; the next layer uses the same memory."""
    n_rows, n_heads, n_kv_heads = recorder.capacity, recorder.n_heads, recorder.n_kv_heads
    head_dim, most = rows.shape.head_dim, rows.most_selected
    stride = n_kv_heads * candidates_stride(n_tokens)

    def held(name: str, n: int, dtype: type[np.generic]) -> DeviceArray:
        whole = recorder.scratch(f"yakv_{name}", n_rows * n, dtype)
        return whole.reshaped((n_rows, n))

    return YakvScratch(
        sums=held("sums", n_heads * n_partials * head_dim, np.float32),
        stats=held("stats", n_heads * n_partials * 2, np.float32),
        queries=held("queries", n_heads * query_words(rows.shape.selector, head_dim), np.uint32),
        records=held("records", n_heads * 4, np.float32),
        logits=held("logits", n_heads * n_tokens, np.float32),
        parts=held("parts", n_heads * -(-n_tokens // SCORE_TOKENS) * 2, np.float32),
        lse=held("lse", n_heads, np.float32),
        weights=held("weights", n_kv_heads * n_tokens, np.float32),
        candidates=recorder.scratch("candidates", n_rows * stride, np.uint32).reshaped((n_rows, stride)),
        ids=held("ids", n_kv_heads * most, np.int32),
        places=held("places", n_kv_heads * most, np.int32),
        missing=held("missing", n_kv_heads * most, np.int32),
        targets=held("targets", n_kv_heads * most, np.int32),
        lengths=held("lengths", n_kv_heads, np.int64),
        budgets=held("budgets", n_kv_heads, np.int64),
        counts=held("counts", n_kv_heads, np.int64),
        n_missing=held("n_missing", n_kv_heads, np.int64),
        firsts=held("firsts", 1, np.int64),
        lasts=held("lasts", 1, np.int64),
    )
