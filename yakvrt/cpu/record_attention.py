"""Records attention: of a prompt's chunk, and of one new token per slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.attend import scratch_floats
from ..kernels.attend_bf16 import can_attend_bf16, scratch_bytes
from ..kernels.merge_partials import MAX_PARTIALS
from ..ops import Buffer, KvRows
from .features import host_features
from .memory import ALIGNMENT, padded

if TYPE_CHECKING:
    from .recorder import Recorder


def record_prefill_attention(recorder: Recorder, out: Buffer, q: Buffer, rows: KvRows) -> None:
    """out = causal attention of consecutive tokens of one slot, whose rows are in the cache."""
    recorder.memory.write_shared(out)
    parameters = (*_shape(recorder), rows.kind)
    if host_features().amx_bf16 and can_attend_bf16(*parameters):
        spec = kernel("attend_bf16", "attend_prefill_bf16_cpu", *parameters)
        attended = _attended_rows(recorder, scratch_bytes(recorder.head_dim))
    else:
        spec = kernel("attend", "attend_prefill_cpu", *parameters)
        attended = _attended_rows(recorder, _float_scratch_bytes(recorder))
    recorder.tape.add(
        spec,
        out.data,
        q.data,
        q.data.strides[0],
        rows.k,
        rows.v,
        rows.slot_bytes,
        rows.head_bytes,
        *attended,
        recorder.memory.copy_bytes(q),
    )


def record_decode_attention(
    recorder: Recorder, out: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: KvRows
) -> None:
    """Appends the row of every slot, attends in splits of the history, and joins the splits into out."""
    memory, partials = recorder.memory, partials_memory(recorder)
    recorder.tape.add(
        kernel("attend_decode", "attend_decode_cpu", *_shape(recorder), rows.kind),
        *partials,
        q.data,
        k.data,
        v.data,
        q.data.strides[0],
        k.data.strides[0],
        rows.k,
        rows.v,
        rows.slot_bytes,
        rows.head_bytes,
        *_attended_rows(recorder, _float_scratch_bytes(recorder)),
        memory.copy_bytes(q),
        memory.copy_bytes(k),
    )
    record_merge(recorder, out, partials)


def partials_memory(recorder: Recorder) -> tuple[np.ndarray, np.ndarray]:
    """For the sums and stats of partial results of attention; see merge_partials_cpu."""
    n_units = recorder.capacity * recorder.n_heads * MAX_PARTIALS
    sums = recorder.memory.shared("partial_sums", n_units * recorder.head_dim * 4)
    return sums, recorder.memory.shared("partial_stats", n_units * 8)


def record_merge(recorder: Recorder, out: Buffer, partials: tuple[np.ndarray, np.ndarray]) -> None:
    """Joins them into out."""
    memory = recorder.memory
    out_copy = memory.write_private(out)
    recorder.tape.add(
        kernel("merge_partials", "merge_partials_cpu", recorder.head_dim),
        out.data,
        out.data.strides[0],
        *partials,
        recorder.n_heads,
        recorder.batch.n_rows,
        memory.shared("partial_factors", memory.n_threads * 64),
        out_copy,
        barrier=not out_copy,
    )


def _shape(recorder: Recorder) -> tuple[int, int]:
    """Query heads per kv head, and the size of a head."""
    return recorder.n_heads // recorder.n_kv_heads, recorder.head_dim


def _float_scratch_bytes(recorder: Recorder) -> int:
    return scratch_floats(*_shape(recorder), host_features().avx512) * 4


def _attended_rows(recorder: Recorder, thread_bytes: int) -> tuple[np.ndarray | int, ...]:
    """What all kinds of attention are told of the rows, and their scratch memory."""
    batch, memory = recorder.batch, recorder.memory
    per_thread = padded(thread_bytes, ALIGNMENT)
    return (
        batch.slots,
        batch.positions,
        batch.n_rows,
        recorder.n_kv_heads,
        memory.number(recorder.head_dim**-0.5),
        memory.shared("attention", per_thread * memory.n_threads),
        per_thread,
    )
