"""Exact KV rows in pinned host memory, position after position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..ops import ELEMENT_BYTES, KvRows, element_type
from .pinned_pool import padded_bytes
from .stream import Stream

if TYPE_CHECKING:
    from .backend import CudaBackend


class PinnedRows:
    """Of one slot (backend.SlotRows): views, once the stream has come so far. `rows` lie in PinnedMemory."""

    key_tile = 1

    def __init__(self, rows: KvRows, slot: int, n_kv_heads: int, head_dim: int, stream: Stream) -> None:
        dtype = element_type(rows.kind)
        first, last = slot * rows.slot_bytes, (slot + 1) * rows.slot_bytes
        shape = n_kv_heads, -1, head_dim
        self._k, self._v = (x.array[first:last].view(dtype).reshape(shape) for x in (rows.k, rows.v))
        self._stream = stream

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        self._stream.synchronise()
        return self._k[:, first:last].astype(np.float32), self._v[:, first:last].astype(np.float32)

    def write(self, first: int, k: np.ndarray, v: np.ndarray) -> None:
        self._stream.synchronise()
        self._k[:, first : first + k.shape[1]], self._v[:, first : first + v.shape[1]] = k, v

    def state(self, n_held: int) -> tuple[np.ndarray, np.ndarray]:
        self._stream.synchronise()
        return self._k[:, :n_held], self._v[:, :n_held]


def pinned_rows(
    backend: CudaBackend, n_layers: int, n_slots: int, n_heads: int, n_tokens: int, head_dim: int, kind: str
) -> list[KvRows]:
    """As Backend.kv_rows(). Raises: DeviceError."""
    head_bytes = n_tokens * head_dim * ELEMENT_BYTES[kind]
    n_bytes = n_slots * n_heads * head_bytes
    pool = backend.pinned_pool(n_layers * padded_bytes([n_bytes] * 2))
    return [
        KvRows(pool.take(n_bytes), pool.take(n_bytes), n_heads * head_bytes, head_bytes, kind)
        for _ in range(n_layers)
    ]
