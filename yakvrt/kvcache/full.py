"""Full attention: every key and value of the slot, in one place, at the precision asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..ops import ELEMENT_BYTES, Buffer, KvRows, Ops
from .contract import AttentionInput, KvSetting, Pools, StateArray, StepBytes
from .slot_state import exact_state
from .slots import SlotList

if TYPE_CHECKING:
    from ..config import ModelConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """Full attention has none."""


def pools(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> Pools:
    """Bytes: 2 * L * Hk * D * element size per token, tokens rounded up to tiles of 16."""
    padded = -(-n_tokens // 16) * 16
    n_bytes = 2 * config.n_layers * config.n_kv_heads * config.head_dim * ELEMENT_BYTES[kind] * padded
    return Pools({"keys and values": n_bytes}, {}, {})


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """All rows."""
    return StepBytes(sum(pools(config, parameters, kind, n_tokens).device.values()), 0)


def build(setting: KvSetting, parameters: Parameters) -> FullKv:
    return FullKv(setting)


class FullKv:
    """Pre-sized exact KV."""

    def __init__(self, setting: KvSetting) -> None:
        config = setting.config
        self._setting, self._slots = setting, SlotList(setting)
        self._layers = setting.backend.kv_rows(
            config.n_layers,
            setting.n_slots,
            config.n_kv_heads,
            setting.ctx_size,
            config.head_dim,
            setting.kind,
        )

    def open(self, n_tokens: int) -> int:
        return self._slots.take(n_tokens)

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

    def truncate(self, slot: int, n_held: int, n: int) -> int:
        return n

    def state(self, slot: int, n_held: int) -> Mapping[str, StateArray]:
        return exact_state(self._setting, self._layers, slot, n_held)

    def release(self, slot: int) -> None:
        self._slots.give_back(slot)

    def stats(self) -> Mapping[str, float | str]:
        setting = self._setting
        n_bytes = pools(setting.config, Parameters(), setting.kind, setting.ctx_size).slot_bytes
        return {
            "method": "full",
            "type": setting.kind,
            "ctx_size": setting.ctx_size,
            "n_slots": setting.n_slots,
            "bytes": setting.n_slots * n_bytes,
        }
