"""Records a decode step's attention to the best pages: append; score, rank and select, and see what a cache
lacks; bring the rows together, and attend to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.page_gather import BLOCK_BYTES
from ..ops import ELEMENT_BYTES, Buffer, KvRows
from .kernel_choice import BLOCKS_AT_ONCE
from .page_pools import PageRows
from .page_step import PageStep, in_words, proxy_strides, recall, select
from .record_attention import append_rows, strides
from .record_factors import fit_factors

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
    step = PageStep(recorder, rows)
    _measure(step)
    asking = by
    if shape.has_boxes:
        _digest(step)
    elif shape.proxy == "channels":
        _keep_proxies(step, _project(step, k, 1))
        asking = _project(step, by, shape.group)
    elif shape.proxy == "factors":
        asking, proxies = fit_factors(step, q, k)
        _keep_proxies(step, proxies)
    select(step, asking)
    if rows.most_places:
        recall(step)
    recorder.stage("fetch", layer)
    gathered = _gather(step)
    recorder.stage("attend", layer)
    step.attend(out, q, gathered)
    step.count()


def _measure(step: PageStep[PageRows]) -> None:
    shape, batch, wanted = step.rows.shape, step.batch, step.rows.wanted
    places = step.rows.places if step.rows.cache else wanted
    step.recorder.launch(
        kernel("page_lengths", "page_lengths_cuda"),
        (-(-step.capacity // 128), 1),
        *(step.sizes, step.budgets, step.lengths, step.firsts, step.ends, step.residents, step.totals),
        *(wanted, places, batch.slots, batch.positions, batch.n_rows, step.capacity, step.n_heads),
        *(shape.group, shape.n_sinks, shape.window, shape.page, int(shape.proxy == "key")),
    )


def _digest(step: PageStep[PageRows]) -> None:
    """Of pages that the new tokens complete."""
    shape, rows, batch = step.rows.shape, step.rows, step.batch
    step.recorder.launch(
        kernel("page_digests", "page_digests_cuda", shape.head_dim, shape.kind, shape.proxy == "centred"),
        (step.n_heads, step.capacity),
        *(rows.proxies, *proxy_strides(step), rows.ring.k, *strides(rows.ring)),
        *(shape.n_sinks, shape.ring_len, shape.page, batch.slots, batch.positions, batch.n_rows),
    )


def _project(step: PageStep[PageRows], x: Buffer, group: int) -> Buffer:
    """The channels of every head, `group` of which share a KV head."""
    rows, head_dim, width = step.rows, step.rows.shape.head_dim, step.rows.proxy_width
    n_heads = x.width // head_dim
    out = step.scratch(f"channels_{n_heads}", step.capacity * n_heads * width, np.float32)
    head = head_dim * width
    step.recorder.launch(
        kernel("page_project", "page_project_cuda", head_dim),
        (n_heads, step.capacity),
        *(out, x.data, x.width, rows.basis, step.n_heads * head, head, step.batch.slots, x.n_rows),
        *(width, group),
    )
    return Buffer(out, n_heads * width, x.n_rows)


def _keep_proxies(step: PageStep[PageRows], made: Buffer) -> None:
    """Those of the new keys, which a kernel for keys and values writes as both."""
    rows = step.rows
    step.recorder.launch(
        kernel("kv_append", "kv_append_cuda", step.rows.shape.proxy_kind),
        (-(-made.width // 1024), step.capacity),
        *(rows.proxies, rows.proxies, *proxy_strides(step), made.data, made.data, made.width),
        *(step.n_heads, rows.proxy_width, step.batch.slots, step.batch.positions, made.n_rows, 0, 0),
    )


def _gather(step: PageStep[PageRows]) -> KvRows:
    """What a step attends to, a slot for each segment."""
    shape, rows, batch = step.rows.shape, step.rows, step.batch
    row_bytes = shape.head_dim * ELEMENT_BYTES[shape.kind]
    most_rows = shape.most_rows(rows.n_tokens, rows.most_pages)
    if rows.cache:  # where a file says so, a page lies in all places
        most_rows = shape.ring_places + rows.most_places * shape.page
    found = step.gathered(most_rows)
    pages, n_pages = (rows.recalled, rows.most_places) if rows.cache else (step.ids, rows.most_pages)
    step.recorder.launch(
        kernel("page_gather", "page_gather_cuda", row_bytes, rows.cache is not None),
        (min(BLOCKS_AT_ONCE, -(-2 * step.segments * found.head_bytes // BLOCK_BYTES)), 1),
        *(found.k, found.v, found.head_bytes // 4),
        *(*in_words(rows.rows), *in_words(rows.ring), *in_words(rows.cache)),
        *(batch.slots, batch.n_rows, step.n_heads, shape.sharing),
        *(step.sizes, step.residents, step.n_filled, step.lasts),
        *(pages, step.n_heads * n_pages, n_pages, step.fresh, rows.most_places),
        *(shape.n_sinks, shape.ring_len, shape.page),
    )
    return found
