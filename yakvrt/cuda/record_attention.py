"""Records attention: of a prompt's chunk, and of one new token per slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.attend_fragments import head_blocks
from ..kernels.attend_prefill_cuda import prefill_tokens_cuda
from ..ops import ELEMENT_BYTES, Buffer, KvRows
from .kernel_choice import attends_on_tensor_cores, decode_splits

if TYPE_CHECKING:
    from .device_array import DeviceArray
    from .recorder import CudaRecorder


class Queries(NamedTuple):
    """Up to `capacity` rows of heads, each of which attends to a slot up to a position."""

    out: Buffer
    q: Buffer
    slots: DeviceArray
    positions: DeviceArray
    capacity: int
    n_heads: int
    n_kv_heads: int

    @classmethod
    def of_batch(cls, recorder: CudaRecorder, out: Buffer, q: Buffer) -> Queries:
        batch, sizes = recorder.device_batch, (recorder.capacity, recorder.n_heads, recorder.n_kv_heads)
        return cls(out, q, batch.slots, batch.positions, *sizes)

    @property
    def group(self) -> int:
        return self.n_heads // self.n_kv_heads


def append_rows(
    recorder: CudaRecorder, rows: KvRows, k: Buffer, v: Buffer, n_sinks: int = 0, ring_len: int = 0
) -> None:
    """Stores the k and v of every row at its slot and position; with a ring_len, positions behind the first
    n_sinks wrap around as many places.
    """
    batch = recorder.device_batch
    recorder.launch(
        kernel("kv_append", "kv_append_cuda", rows.kind),
        (-(-k.width // 1024), recorder.capacity),
        *(rows.k, rows.v, *strides(rows), k.data, v.data, k.width, recorder.n_kv_heads, recorder.head_dim),
        *(batch.slots, batch.positions, k.n_rows, n_sinks, ring_len),
    )


def record_prefill_attention(recorder: CudaRecorder, out: Buffer, q: Buffer, rows: KvRows) -> None:
    """out = causal attention of consecutive tokens of one slot, whose rows are in the cache."""
    queries = Queries.of_batch(recorder, out, q)
    if not attends_on_tensor_cores(recorder.head_dim, rows.kind, queries.group):
        _attend_plain(recorder, queries, rows)
        return
    recorder.launch(
        kernel("attend_prefill_cuda", "attend_prefill_cuda", recorder.head_dim, rows.kind),
        (-(-recorder.capacity // prefill_tokens_cuda(queries.group)), recorder.n_kv_heads),
        *(out.data, out.width, q.data, q.width, rows.k, rows.v, *strides(rows)),
        *(queries.slots, queries.positions, q.n_rows, queries.group, recorder.head_dim**-0.5),
    )


def record_decode_attention(recorder: CudaRecorder, queries: Queries, rows: KvRows) -> None:
    """Attends in splits of the history, and joins the splits into out."""
    if not attends_on_tensor_cores(recorder.head_dim, rows.kind, queries.group):
        _attend_plain(recorder, queries, rows)
        return
    out, q, slots, positions, capacity, n_heads, n_kv_heads = queries
    head_dim, group = recorder.head_dim, queries.group
    n_tokens = rows.head_bytes // (head_dim * ELEMENT_BYTES[rows.kind])
    n_splits = decode_splits(n_tokens, capacity, n_kv_heads, group)
    n_units = capacity * n_heads * n_splits
    sums = recorder.scratch("split_sums", n_units * head_dim, np.float32)
    stats = recorder.scratch("split_stats", n_units * 2, np.float32)
    recorder.launch(
        kernel("attend_decode_cuda", "attend_decode_cuda", head_dim, rows.kind, False),
        (n_kv_heads * n_splits * head_blocks(group), capacity),
        *(sums, stats, 0, n_splits, n_splits, q.data, q.width, rows.k, rows.v, *strides(rows)),
        *(slots, positions, q.n_rows, n_kv_heads, group, head_dim**-0.5, 0, 0),
    )
    recorder.launch(
        kernel("merge_partials", "merge_partials_cuda", head_dim),
        (n_heads, capacity),
        *(out.data, out.width, sums, stats, n_splits, n_heads, q.n_rows),
    )


def _attend_plain(recorder: CudaRecorder, queries: Queries, rows: KvRows) -> None:
    out, q, slots, positions, capacity, n_heads, _ = queries
    recorder.launch(
        kernel("attend_plain_cuda", "attend_plain_cuda", recorder.head_dim, rows.kind),
        (n_heads, capacity),
        *(out.data, out.width, q.data, q.width, rows.k, rows.v, *strides(rows)),
        *(slots, positions, q.n_rows, queries.group, recorder.head_dim**-0.5),
    )


def strides(rows: KvRows) -> tuple[int, int]:
    """Numbers of the cache between slots and between heads."""
    size = ELEMENT_BYTES[rows.kind]
    return rows.slot_bytes // size, rows.head_bytes // size
