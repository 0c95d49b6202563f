"""The oracle: the tokens of largest true probability. A bound for methods that choose, not a method.

It reads every key to choose, which is not counted; the rows it attends are counted as any method's. Generated
tokens leave the window like the prompt's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..ops import ELEMENT_BYTES, Buffer, KvRows, Ops
from .budget import budget_tokens, check_budget, check_choice, check_range
from .contract import BY_TOKEN, AttentionInput, KvSetting, Pools, StateArray, StepBytes
from .counters import Counters, method_stats
from .exact_rows import ExactRows
from .rows import RULES, attend_each, attend_rows, group_weights, logits, top
from .slots import SlotList
from .staging import Staging, staging_bytes

if TYPE_CHECKING:
    from ..config import ModelConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """sparse_budget: tokens, or a share of the prompt, chosen per KV head and step by `rule`, beside the
    first (sinks) and last (recent) tokens.

    Raises: ValueError for a value out of range.
    """

    sparse_budget: float = 0.03125
    sinks: int = 4
    recent: int = 64
    rule: str = "sum"

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_range("sinks", self.sinks, 0, 1 << 20)
        check_range("recent", self.recent, 1, 1 << 20)
        check_choice("rule", self.rule, RULES)


def host_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: L * Hk * 2 * D * element size."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * ELEMENT_BYTES[kind]


def pools(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> Pools:
    """Bytes: rows of all tokens on the host, of the first and last ones on the device."""
    row = int(host_bytes_per_token(config, parameters, kind))
    return Pools(
        device={"first and last tokens": row * (parameters.sinks + parameters.recent)},
        host={"keys and values": row * n_tokens},
        transient={"staging": staging_bytes(config, kind, n_tokens)},
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: L * Hk * rows * 2 * D * element size."""
    selected = min(budget_tokens(parameters.sparse_budget, n_tokens), n_tokens)
    device = sum(pools(config, parameters, kind, n_tokens).device.values())
    return StepBytes(device, selected * int(host_bytes_per_token(config, parameters, kind)))


def build(setting: KvSetting, parameters: Parameters) -> Oracle:
    return Oracle(setting, parameters)


@dataclass(slots=True)
class _Slot:
    """`resident` holds the first tokens, then the last ones by position modulo their number. prompt: the
    tokens of which the budget is a share, those held when the last prompt was in.
    """

    rows: ExactRows
    resident: ExactRows
    prompt: np.ndarray


class Oracle:
    """Exact top-k over rows on the host."""

    def __init__(self, setting: KvSetting, parameters: Parameters) -> None:
        self._setting, self._parameters = setting, parameters
        self._free, self._slots = SlotList(setting), dict[int, _Slot]()
        self._staging = Staging(setting)
        self._counters = Counters(setting.config.n_layers)

    def open(self, n_tokens: int) -> int:
        slot = self._free.take(n_tokens)
        config, kind, p = self._setting.config, self._setting.kind, self._parameters
        shape = config.n_layers, config.n_kv_heads
        self._slots[slot] = _Slot(
            ExactRows(*shape, n_tokens, config.head_dim, kind),
            ExactRows(*shape, p.sinks + p.recent, config.head_dim, kind),
            np.zeros(1, np.int64),
        )
        return slot

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        self._staging.write(0, *self._slots[slot].rows.read(layer, 0, n_held))

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        ops.kv_append(self._staging.rows, attention.k, attention.v)
        return self._staging.rows

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        held, n = self._slots[slot], n_held + n_new
        held.rows.write(layer, n_held, *self._staging.read(n_held, n))
        held.prompt[0] = n
        self._settle(held, layer, n)

    def _settle(self, held: _Slot, layer: int, n: int) -> None:
        """Loads the first and last of n tokens."""
        positions = self._lasting(n)
        heads = np.repeat(np.arange(self._setting.config.n_kv_heads), len(positions))
        positions = np.tile(positions, self._setting.config.n_kv_heads)
        held.resident.copy_from(layer, heads, self._place(positions), held.rows, positions)

    def _lasting(self, n: int) -> np.ndarray:
        """The first and last of n tokens."""
        p = self._parameters
        sinks = min(p.sinks, n)
        return np.concatenate([np.arange(sinks), np.arange(max(sinks, n - p.recent), n)])

    def _place(self, positions: np.ndarray) -> np.ndarray:
        sinks = self._parameters.sinks
        return np.where(positions < sinks, positions, sinks + positions % self._parameters.recent)

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        def attend(slot: int, position: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
            return self._attend(self._slots[slot], layer, position, q, k, v)

        attend_each(ops, self._setting.config, attention, out, attend)

    def _attend(
        self, held: _Slot, layer: int, position: int, q: np.ndarray, k: np.ndarray, v: np.ndarray
    ) -> np.ndarray:
        p, n_heads, n = self._parameters, len(q), position + 1
        held.rows.write(layer, position, k[:, None], v[:, None])
        lasting = self._place(self._lasting(n))
        held.resident.write(layer, int(lasting[-1]), k[:, None], v[:, None])
        keys, values = held.resident.take(layer, np.broadcast_to(lasting, (n_heads, len(lasting))))
        first, last = min(p.sinks, n), max(min(p.sinks, n), n - p.recent)
        count = min(budget_tokens(p.sparse_budget, int(held.prompt[0])), last - first)
        if count:
            scaled = logits(q, held.rows.keys(layer, n)) * np.float32(q.shape[-1] ** -0.5)
            chosen = first + top(group_weights(scaled, p.rule)[:, first:last], count)
            fetched = held.rows.take(layer, chosen)
            keys = np.concatenate([keys, fetched[0]], axis=1)
            values = np.concatenate([values, fetched[1]], axis=1)
        row_bytes = 2 * q.shape[-1] * ELEMENT_BYTES[self._setting.kind]
        read = n_heads * keys.shape[1]
        self._counters.add(layer, read=read, asked=n_heads * count, hit=0, row_bytes=row_bytes)
        return attend_rows(q, keys, values)

    def truncate(self, slot: int, n_held: int, n: int) -> int:
        held = self._slots[slot]
        for layer in range(self._setting.config.n_layers):
            self._settle(held, layer, n)
        held.prompt[0] = min(held.prompt[0], n)
        return n

    def state(self, slot: int, n_held: int) -> Mapping[str, StateArray]:
        held, p = self._slots[slot], self._parameters
        return {
            "rows": StateArray(held.rows.first(n_held), rows=BY_TOKEN),
            "resident": StateArray(held.resident.first(p.sinks + p.recent)),
            "prompt": StateArray(held.prompt, (0, n_held)),
        }

    def release(self, slot: int) -> None:
        del self._slots[slot]
        self._free.give_back(slot)

    def stats(self) -> Mapping[str, float | str]:
        setting = self._setting
        of = setting.config, self._parameters, setting.kind
        return method_stats(
            "oracle",
            setting,
            pools(*of, setting.ctx_size),
            self._counters,
            0.0,
            host_bytes_per_token(*of),
        )
