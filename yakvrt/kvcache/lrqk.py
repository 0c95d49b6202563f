"""LRQK (Li et al., NeurIPS 2025, arXiv 2510.23649): tokens chosen per query head by proxies of low rank.

Every query head has proxies A_K of all keys on the device, and places for the rows it chose; in a step only
rows that are not there yet cross the link. The last tokens stay in a ring.

Differs: the ring always holds the last `recent` tokens. Iterations end for each KV head by itself. The rows
of a further prompt get their proxies from the first prompt's B_K. Rows are on the host as soon as they exist.
Generated tokens get proxies, and leave the ring for the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.page_layout import PromptProxies
from ..ops import ELEMENT_BYTES
from .budget import budget_tokens, check_budget, check_choice, check_range
from .contract import GpuPools, KvSetting, Pools, StepBytes
from .lrqk_factors import INITS, factorise
from .paged import PagedKv, PagedMethod, page_shape, row_bytes
from .staging import staging_bytes

if TYPE_CHECKING:
    from ..config import ModelConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """sparse_budget: tokens, or a share of the prompt, chosen per query head; split_budget shares it out
    among the query heads of a group.

    Raises: ValueError for a value out of range.
    """

    sparse_budget: float = 512
    split_budget: bool = False
    rank: int = 16
    recent: int = 16
    iterations: int = 2
    tolerance: float = 0.01
    init: str = "topcol"

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_range("rank", self.rank, 1, 256)
        check_range("recent", self.recent, 1, 1 << 20)
        check_range("iterations", self.iterations, 1, 100)
        check_range("tolerance", self.tolerance, 0, 1e9)
        check_choice("init", self.init, INITS)

    def places(self, config: ModelConfig, n_tokens: int) -> int:
        """Tokens chosen per query head for a prompt of n_tokens."""
        wanted = budget_tokens(self.sparse_budget, n_tokens)
        return max(1, wanted * config.n_kv_heads // config.n_heads) if self.split_budget else wanted


def host_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: L * Hk * 2 * D * element size."""
    return config.n_layers * config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]


def device_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: L * Hq * rank * 2."""
    return config.n_layers * config.n_heads * min(parameters.rank, config.head_dim) * 2


def pools(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> Pools:
    """Bytes: the bytes per token; rows of the chosen tokens per query head and of the ring per KV head; B_Q
    and B_K in float32. On a GPU proxies lie in whole pieces of 16 bytes, beside numbers of the chosen tokens;
    a step takes the rows of every query head together, 24 bytes more to choose one, 16 bytes a token and head
    to score it, and the matrices that it solves.
    """
    row = 2 * config.head_dim * ELEMENT_BYTES[kind]
    places = min(n_tokens, parameters.places(config, n_tokens))
    rank, n_heads = min(parameters.rank, config.head_dim), config.n_heads
    chosen, fitted = n_heads * places * (row + 24), 4 * n_heads * 3 * rank * rank
    queries = 4 * n_heads * config.head_dim * n_tokens
    return Pools(
        device={
            "proxies": int(n_tokens * device_bytes_per_token(config, parameters, kind)),
            "chosen rows": config.n_layers * config.n_heads * places * row,
            "last tokens": config.n_layers * config.n_kv_heads * parameters.recent * row,
            "factors": config.n_layers * config.n_heads * 2 * rank * config.head_dim * 4,
        },
        host={"keys and values": int(n_tokens * host_bytes_per_token(config, parameters, kind))},
        transient={
            "staging": staging_bytes(config, kind, n_tokens),
            "queries": queries,
        },
        gpu=GpuPools(
            step=chosen + n_heads * (parameters.recent * row + 16 * n_tokens) + fitted,
            asking=1,
            device=config.n_layers * n_heads * (2 * (-rank % 8) * n_tokens + 4 * places),
            queries=queries,
        ),
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: L * Hq * rows * 2 * D * element size."""
    held = pools(config, parameters, kind, n_tokens).device
    selected = min(parameters.places(config, n_tokens), n_tokens)
    row = 2 * config.head_dim * ELEMENT_BYTES[kind]
    device = sum(n for name, n in held.items() if name != "chosen rows")
    return StepBytes(device, config.n_layers * config.n_heads * selected * row)


def build(setting: KvSetting, parameters: Parameters) -> PagedKv:
    config, of = setting.config, (setting.config, parameters, setting.kind)
    shape = page_shape(
        setting,
        group=1,
        page=1,
        n_sinks=0,
        window=parameters.recent - 1,
        proxy="factors",
        rule="mean",
        n_channels=min(parameters.rank, config.head_dim),
        sharing=config.n_heads // config.n_kv_heads,
    )
    method = PagedMethod(
        "lrqk",
        shape,
        0,
        partial(parameters.places, config),
        partial(parameters.places, config),
        pools(*of, setting.ctx_size),
        device_bytes_per_token(*of),
        host_bytes_per_token(*of),
        row_bytes(setting),
        tells=partial(_factors, parameters),
    )
    return PagedKv(setting, method)


def _factors(parameters: Parameters, q: np.ndarray, read_keys: Callable[[], np.ndarray]) -> PromptProxies:
    """See PagedMethod.tells. A KV head at a time: what all of them take at once is several times as much."""
    p, keys = parameters, read_keys()
    by_head = [
        factorise(of_head, k, p.rank, p.iterations, p.tolerance, p.init)
        for of_head, k in zip(np.split(q, len(keys)), keys, strict=True)
    ]
    basis, proxies, asking = (np.concatenate(parts) for parts in zip(*by_head, strict=True))
    return PromptProxies(basis, proxies, asking)
