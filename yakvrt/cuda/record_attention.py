"""Records attention: of a prompt's chunk, and of one new token per slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.attend_fragments import head_blocks
from ..kernels.attend_prefill_cuda import prefill_tokens_cuda
from ..ops import ELEMENT_BYTES, Buffer, KvRows
from .kernel_choice import attends_on_tensor_cores, decode_splits

if TYPE_CHECKING:
    from .recorder import CudaRecorder, DeviceBatch


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
    if not _on_tensor_cores(recorder, rows):
        _attend_plain(recorder, out, q, rows, recorder.device_batch)
        return
    batch, group = recorder.device_batch, recorder.n_heads // recorder.n_kv_heads
    recorder.launch(
        kernel("attend_prefill_cuda", "attend_prefill_cuda", recorder.head_dim, rows.kind),
        (-(-recorder.capacity // prefill_tokens_cuda(group)), recorder.n_kv_heads),
        *(out.data, out.width, q.data, q.width, rows.k, rows.v, *strides(rows)),
        *(batch.slots, batch.positions, q.n_rows, group, recorder.head_dim**-0.5),
    )


def record_decode_attention(
    recorder: CudaRecorder, out: Buffer, q: Buffer, rows: KvRows, batch: DeviceBatch
) -> None:
    """Attends to each slot up to its position, in splits of the history, and joins the splits into out."""
    if not _on_tensor_cores(recorder, rows):
        _attend_plain(recorder, out, q, rows, batch)
        return
    capacity, n_heads, n_kv_heads = recorder.capacity, recorder.n_heads, recorder.n_kv_heads
    head_dim, group = recorder.head_dim, n_heads // n_kv_heads
    n_tokens = rows.head_bytes // (head_dim * ELEMENT_BYTES[rows.kind])
    n_splits = decode_splits(n_tokens, capacity, n_kv_heads, group)
    n_units = capacity * n_heads * n_splits
    sums = recorder.scratch("split_sums", n_units * head_dim, np.float32)
    stats = recorder.scratch("split_stats", n_units * 2, np.float32)
    recorder.launch(
        kernel("attend_decode_cuda", "attend_decode_cuda", head_dim, rows.kind, False),
        (n_kv_heads * n_splits * head_blocks(group), capacity),
        *(sums, stats, 0, n_splits, n_splits, q.data, q.width, rows.k, rows.v, *strides(rows)),
        *(batch.slots, batch.positions, q.n_rows, n_kv_heads, group, head_dim**-0.5, 0, 0),
    )
    recorder.launch(
        kernel("merge_partials", "merge_partials_cuda", head_dim),
        (n_heads, capacity),
        *(out.data, out.width, sums, stats, n_splits, n_heads, q.n_rows),
    )


def _attend_plain(recorder: CudaRecorder, out: Buffer, q: Buffer, rows: KvRows, batch: DeviceBatch) -> None:
    recorder.launch(
        kernel("attend_plain_cuda", "attend_plain_cuda", recorder.head_dim, rows.kind),
        (recorder.n_heads, recorder.capacity),
        *(out.data, out.width, q.data, q.width, rows.k, rows.v, *strides(rows)),
        *(batch.slots, batch.positions, q.n_rows, recorder.n_heads // recorder.n_kv_heads),
        recorder.head_dim**-0.5,
    )


def strides(rows: KvRows) -> tuple[int, int]:
    """Numbers of the cache between slots and between heads."""
    size = ELEMENT_BYTES[rows.kind]
    return rows.slot_bytes // size, rows.head_bytes // size


def _on_tensor_cores(recorder: CudaRecorder, rows: KvRows) -> bool:
    group = recorder.n_heads // recorder.n_kv_heads
    return attends_on_tensor_cores(recorder.head_dim, rows.kind, group)
