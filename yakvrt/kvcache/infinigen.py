"""InfiniGen (Lee et al., OSDI 2024, arXiv 2406.19707): tokens chosen one layer ahead by some skewed channels.

An orthogonal matrix turns queries and keys so that few channels carry most of their products; those channels
of all keys stay on the device. A layer's query is guessed from the attention input of the layer before, early
enough to fetch the rows of its best tokens while that layer computes.

Differs: the matrix of a KV head comes from the prompt's own roped queries and is applied after RoPE (the
paper calibrates offline and folds it into the weights); further prompts keep it. Heads of a group choose
together by `rule`. With no dense layer, layer 0 chooses by its own query. Generated tokens join the others on
the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..cpu.exact_rows import ExactRows
from ..cpu.memory import reserved
from ..kernels.chosen_rows import attend_rows, group_weights, logits, top
from ..kernels.select_topk import RULES
from ..ops import ELEMENT_BYTES, Buffer, KvRows, Ops, element_type
from .budget import budget_tokens, check_budget, check_choice, check_range
from .contract import BY_TOKEN, AttentionInput, KvSetting, Pools, StateArray, StepBytes
from .counters import Counters, method_stats
from .dense_layers import DenseLayers
from .prompt_queries import PromptQueries
from .rows import attend_each
from .slots import SlotList
from .staging import Staging, staging_bytes

if TYPE_CHECKING:
    from ..config import ModelConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """sparse_budget: the most tokens, or their share of the prompt, fetched per KV head and step; fewer where
    fewer logits lie within `alpha` of a head's largest, on average over heads.

    partial: the share of channels on the device.

    Raises: ValueError for a value out of range.
    """

    sparse_budget: float = 0.2
    partial: float = 0.2
    alpha: float = 4.0
    dense_layers: int = 2
    rule: str = "max"

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_range("partial", self.partial, 1 / 256, 1)
        check_range("alpha", self.alpha, 0, 1e9)
        check_range("dense_layers", self.dense_layers, 0, 1024)
        check_choice("rule", self.rule, RULES)

    def channels(self, config: ModelConfig) -> int:
        """Channels of a key that stay on the device."""
        return max(1, int(self.partial * config.head_dim))


def host_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: L * Hk * 2 * D * element size."""
    return config.n_layers * config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]


def device_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: (L - dense) * Hk * channels * element size."""
    sparse = max(0, config.n_layers - parameters.dense_layers)
    return sparse * config.n_kv_heads * parameters.channels(config) * ELEMENT_BYTES[kind]


def pools(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> Pools:
    """Bytes: the bytes per token, and the matrices in float32."""
    skew = config.n_layers * config.n_kv_heads * parameters.channels(config) * config.head_dim * 4
    return Pools(
        device={
            "partial keys": int(n_tokens * device_bytes_per_token(config, parameters, kind)),
            "skew": skew,
        },
        host={"keys and values": int(n_tokens * host_bytes_per_token(config, parameters, kind))},
        transient={
            "staging": staging_bytes(config, kind, n_tokens),
            "queries": 4 * config.n_heads * config.head_dim * n_tokens,
        },
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: Hk * 2 * D * element size times the budget's rows in every sparse layer, where alpha leaves
    them all, and all rows in dense ones.
    """
    dense = min(config.n_layers, parameters.dense_layers)
    selected = min(budget_tokens(parameters.sparse_budget, n_tokens), n_tokens)
    row = 2 * config.n_kv_heads * config.head_dim * ELEMENT_BYTES[kind]
    device = sum(pools(config, parameters, kind, n_tokens).device.values())
    return StepBytes(device, row * ((config.n_layers - dense) * selected + dense * n_tokens))


def build(setting: KvSetting, parameters: Parameters) -> InfiniGen:
    return InfiniGen(setting, parameters)


@dataclass(slots=True)
class _Slot:
    """partial [L, Hk, tokens, c]: the skewed channels of keys; skew float32 [L, Hk, D, c]. prompt: the tokens
    of which the budget is a share, those held when the last prompt was in.
    """

    rows: ExactRows
    partial: np.ndarray
    skew: np.ndarray
    prompt: np.ndarray


class InfiniGen:
    """Some channels of the keys on the device, all rows on the host."""

    def __init__(self, setting: KvSetting, parameters: Parameters) -> None:
        self._setting, self._parameters = setting, parameters
        self._free, self._slots = SlotList(setting), dict[int, _Slot]()
        self._staging, self._queries = Staging(setting), PromptQueries(setting)
        self._counters = Counters(setting.config.n_layers)
        self._dense = DenseLayers(setting, parameters.dense_layers, self._counters, on_host=True)
        self._guess: Buffer | None = None  # while a step is recorded: the next layer's query

    def open(self, n_tokens: int) -> int:
        slot = self._free.take(n_tokens)
        config, kind = self._setting.config, self._setting.kind
        shape, n_channels = (config.n_layers, config.n_kv_heads), self._parameters.channels(config)
        dtype = element_type(kind)
        self._slots[slot] = _Slot(
            ExactRows(*shape, n_tokens, config.head_dim, kind),
            reserved((*shape, n_tokens, n_channels * dtype.itemsize)).view(dtype),
            np.zeros((*shape, config.head_dim, n_channels), np.float32),
            np.zeros(1, np.int64),
        )
        return slot

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        if layer >= self._dense.n:
            self._staging.write(0, *self._slots[slot].rows.read(layer, 0, n_held))

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        if layer < self._dense.n:
            return self._dense.prefill(ops, layer, attention)
        self._queries.record(ops, attention)
        ops.kv_append(self._staging.rows, attention.k, attention.v)
        return self._staging.rows

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        if layer < self._dense.n:
            return
        held, n, config = self._slots[slot], n_held + n_new, self._setting.config
        k, v = self._staging.read(n_held, n)
        held.rows.write(layer, n_held, k, v)
        if not n_held:
            q = self._queries.read(0, n).reshape(config.n_kv_heads, -1, config.head_dim)
            held.skew[layer] = skew_channels(q, self._parameters.channels(config))
        held.partial[layer, :, n_held:n] = k @ held.skew[layer]
        held.prompt[0] = n

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        query = attention.q if layer == 0 or self._guess is None else self._guess
        self._guess = self._next_query(ops, layer, attention)
        if layer < self._dense.n:
            self._dense.decode(ops, layer, attention, out)
            return

        def attend(
            slot: int, position: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, guess: np.ndarray
        ) -> np.ndarray:
            return self._attend(self._slots[slot], layer, position, q, k, v, guess)

        attend_each(ops, self._setting.config, attention, out, attend, query)

    def _next_query(self, ops: Ops, layer: int, attention: AttentionInput) -> Buffer | None:
        """Records the next layer's query as this layer's attention input would make it."""
        config = self._setting.config
        if layer + 1 >= config.n_layers:
            return None
        weights = self._setting.weights.layers[layer + 1]
        width = config.n_heads * config.head_dim
        plain, turned = ops.buffer(width), ops.buffer(width)
        ops.matmul((plain,), (weights.attn_q,), attention.h)
        if config.qk_norm:
            ops.head_norm(plain, plain, weights.attn_q_norm, config.norm_eps)
        ops.rope(turned, plain)
        return turned

    def _attend(
        self,
        held: _Slot,
        layer: int,
        position: int,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        guess: np.ndarray,
    ) -> np.ndarray:
        skew, n_heads, dim = held.skew[layer], len(q), q.shape[-1]
        keys, values = k[:, None], v[:, None]
        held.rows.write(layer, position, keys, values)
        held.partial[layer, :, position] = (keys @ skew)[:, 0]
        count = 0
        if position:
            scaled = logits(guess @ skew, held.partial[layer, :, :position]) * np.float32(dim**-0.5)
            near = scaled >= scaled.max(axis=-1, keepdims=True) - np.float32(self._parameters.alpha)
            budget = budget_tokens(self._parameters.sparse_budget, int(held.prompt[0]))
            count = min(max(1, int(near.sum(axis=-1).mean())), budget, position)
            chosen = top(group_weights(scaled, self._parameters.rule), count)
            fetched = held.rows.take(layer, chosen)
            keys = np.concatenate([fetched[0], keys], axis=1)
            values = np.concatenate([fetched[1], values], axis=1)
        row_bytes = 2 * dim * ELEMENT_BYTES[self._setting.kind]
        read = n_heads * keys.shape[1]
        self._counters.add(layer, read=read, asked=n_heads * count, hit=0, row_bytes=row_bytes)
        return attend_rows(q, keys, values)

    def truncate(self, slot: int, n_held: int, n: int) -> int:
        prompt = self._slots[slot].prompt
        prompt[0] = min(prompt[0], n)
        return n

    def state(self, slot: int, n_held: int) -> Mapping[str, StateArray]:
        held, dense = self._slots[slot], self._dense.n
        return {
            **self._dense.state(slot, n_held),
            "rows": StateArray(held.rows.first(n_held, dense), rows=BY_TOKEN),
            "partial": StateArray(held.partial[dense:, :, :n_held], rows=BY_TOKEN),
            "skew": StateArray(held.skew[dense:]),
            "prompt": StateArray(held.prompt, (0, n_held)),
        }

    def release(self, slot: int) -> None:
        del self._slots[slot]
        self._free.give_back(slot)

    def stats(self) -> Mapping[str, float | str]:
        setting = self._setting
        of = setting.config, self._parameters, setting.kind
        return method_stats(
            "infinigen",
            setting,
            pools(*of, setting.ctx_size),
            self._counters,
            device_bytes_per_token(*of),
            host_bytes_per_token(*of),
        )


def skew_channels(q: np.ndarray, n: int) -> np.ndarray:
    """The right singular vectors of queries on which these are largest. Shapes: q [H, m, D] -> [H, D, n]."""
    _, vectors = np.linalg.eigh(q.swapaxes(1, 2).astype(np.float64) @ q)
    vectors = vectors.astype(np.float32)
    sizes = np.abs(q @ vectors).sum(axis=1)
    return np.take_along_axis(vectors, top(sizes, n)[:, None], axis=2)
