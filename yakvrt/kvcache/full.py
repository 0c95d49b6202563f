"""Full attention: every key and value of the slot, in one place, at the precision asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..ops import ELEMENT_BYTES, Buffer, KvRows, Ops
from .contract import AttentionInput

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..cpu.backend import CpuBackend


def full_kv_bytes(config: ModelConfig, n_tokens: int, kind: str) -> int:
    """Bytes: 2 * L * Hk * D * element size per token, tokens rounded up to tiles of 16."""
    padded = -(-n_tokens // 16) * 16
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * ELEMENT_BYTES[kind] * padded


class FullKv:
    """Pre-sized exact KV of n_slots slots of ctx_size tokens each."""

    def __init__(
        self, backend: CpuBackend, config: ModelConfig, n_slots: int, ctx_size: int, kind: str
    ) -> None:
        self._ctx_size, self._kind, self._config = ctx_size, kind, config
        self._n_slots = n_slots
        self._layers = backend.kv_rows(
            config.n_layers, n_slots, config.n_kv_heads, ctx_size, config.head_dim, kind
        )
        self._free = list(range(n_slots))[::-1]

    def open(self, n_tokens: int) -> int:
        if n_tokens > self._ctx_size:
            raise ValueError(f"{n_tokens} tokens asked for, a slot holds {self._ctx_size}; raise --ctx-size")
        if not self._free:
            raise RuntimeError(f"all {self._n_slots} slots are in use; close a session or raise n_slots")
        return self._free.pop()

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        pass  # the rows are where they always are

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        rows = self._layers[layer]
        ops.kv_append(rows, attention.k, attention.v)
        return rows

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        pass

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        ops.attend_decode(out, attention.q, attention.k, attention.v, self._layers[layer])

    def truncate(self, slot: int, n: int) -> int:
        return n

    def release(self, slot: int) -> None:
        self._free.append(slot)

    def stats(self) -> Mapping[str, float | str]:
        n_bytes = self._n_slots * full_kv_bytes(self._config, self._ctx_size, self._kind)
        return {
            "method": "full",
            "type": self._kind,
            "ctx_size": self._ctx_size,
            "n_slots": self._n_slots,
            "bytes": n_bytes,
        }
