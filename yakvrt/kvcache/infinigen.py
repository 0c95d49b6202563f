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

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.chosen_rows import top
from ..kernels.page_layout import PromptProxies
from ..kernels.select_topk import RULES
from ..ops import ELEMENT_BYTES, Buffer, Ops
from .budget import budget_tokens, check_budget, check_choice, check_range
from .contract import AttentionInput, GpuPools, KvSetting, Pools, StepBytes
from .paged import PagedKv, PagedMethod, page_shape, row_bytes
from .staging import staging_bytes
from .step_scratch import asking, score_bytes

if TYPE_CHECKING:
    from ..config import ModelConfig


ANY_ALPHA = 1e9


@dataclass(frozen=True, slots=True)
class Parameters:
    """sparse_budget: the most tokens, or their share of the prompt, fetched per KV head and step; fewer where
    fewer logits lie within `alpha` of a head's largest, on average over heads; 1e9: no fewer.

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
        check_range("alpha", self.alpha, 0, ANY_ALPHA)
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
    row = 2 * config.n_kv_heads * config.head_dim * ELEMENT_BYTES[kind]
    dense = min(config.n_layers, parameters.dense_layers)
    padding = (config.n_layers - dense) * config.n_kv_heads * (-parameters.channels(config) % 8)
    queries = 4 * config.n_heads * config.head_dim * n_tokens
    return Pools(
        device={
            "partial keys": int(n_tokens * device_bytes_per_token(config, parameters, kind)),
            "skew": skew,
        },
        host={"keys and values": int(n_tokens * host_bytes_per_token(config, parameters, kind))},
        transient={
            "staging": staging_bytes(config, kind, n_tokens),
            "queries": queries,
        },
        gpu=GpuPools(
            step=row * min(budget_tokens(parameters.sparse_budget, n_tokens) + 1, n_tokens)
            + score_bytes(config, n_tokens),
            asking=asking(config, parameters.dense_layers),
            device=padding * (n_tokens * ELEMENT_BYTES[kind] + 4 * config.head_dim),
            dense=dense * row * n_tokens,
            queries=queries,
        ),
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


def build(setting: KvSetting, parameters: Parameters) -> PagedKv:
    config, of = setting.config, (setting.config, parameters, setting.kind)
    n_channels = parameters.channels(config)
    shape = page_shape(
        setting,
        page=1,
        n_sinks=0,
        window=0,
        proxy="channels",
        rule=parameters.rule,
        n_channels=n_channels,
        alpha=inf if parameters.alpha == ANY_ALPHA else parameters.alpha,
    )
    method = PagedMethod(
        "infinigen",
        shape,
        parameters.dense_layers,
        partial(budget_tokens, parameters.sparse_budget),
        lambda n_tokens: 0,
        pools(*of, setting.ctx_size),
        device_bytes_per_token(*of),
        host_bytes_per_token(*of),
        row_bytes(setting),
        dense_on_host=True,
        asks=_Guess(setting),
        tells=partial(_skew, config, n_channels),
    )
    return PagedKv(setting, method)


class _Guess:
    """Records, layer by layer, the queries that choose: guessed by the layer before, but in layer 0."""

    def __init__(self, setting: KvSetting) -> None:
        self._setting = setting
        self._next: Buffer | None = None

    def __call__(self, ops: Ops, layer: int, attention: AttentionInput) -> Buffer:
        query = attention.q if layer == 0 or self._next is None else self._next
        self._next = self._next_query(ops, layer, attention)
        return query

    def _next_query(self, ops: Ops, layer: int, attention: AttentionInput) -> Buffer | None:
        """The next layer's query as this layer's attention input would make it."""
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


def _skew(config: ModelConfig, n: int, q: np.ndarray, read_keys: Callable[[], np.ndarray]) -> PromptProxies:
    """See PagedMethod.tells. A KV head at a time, for what it takes."""
    by_head = q.reshape(config.n_kv_heads, 1, -1, config.head_dim)
    return PromptProxies(np.concatenate([skew_channels(of_head, n) for of_head in by_head]))


def skew_channels(q: np.ndarray, n: int) -> np.ndarray:
    """The right singular vectors of queries on which these are largest. Shapes: q [H, m, D] -> [H, D, n]."""
    _, vectors = np.linalg.eigh(q.swapaxes(1, 2).astype(np.float64) @ q)
    vectors = vectors.astype(np.float32)
    sizes = np.abs(q @ vectors).sum(axis=1)
    return np.take_along_axis(vectors, top(sizes, n)[:, None], axis=2)
