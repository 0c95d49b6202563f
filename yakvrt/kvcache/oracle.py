"""The oracle: the tokens of largest true probability. A bound for methods that choose, not a method.

It reads every key to choose, which is not counted; the rows it attends are counted as any method's. Generated
tokens leave the window like the prompt's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..kernels.select_topk import RULES
from ..ops import ELEMENT_BYTES
from .budget import budget_tokens, check_budget, check_choice, check_range
from .contract import GpuPools, KvSetting, Pools, StepBytes
from .paged import PagedKv, PagedMethod, page_shape, row_bytes
from .staging import staging_bytes
from .step_scratch import asking, score_bytes

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
    n_read = parameters.sinks + parameters.recent + budget_tokens(parameters.sparse_budget, n_tokens)
    return Pools(
        device={"first and last tokens": row * (parameters.sinks + parameters.recent)},
        host={"keys and values": row * n_tokens},
        transient={"staging": staging_bytes(config, kind, n_tokens)},
        gpu=GpuPools(
            step=row // config.n_layers * min(n_read, n_tokens) + score_bytes(config, n_tokens),
            asking=asking(config, 0),
        ),
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: L * Hk * rows * 2 * D * element size."""
    selected = min(budget_tokens(parameters.sparse_budget, n_tokens), n_tokens)
    device = sum(pools(config, parameters, kind, n_tokens).device.values())
    return StepBytes(device, selected * int(host_bytes_per_token(config, parameters, kind)))


def build(setting: KvSetting, parameters: Parameters) -> PagedKv:
    of = setting.config, parameters, setting.kind
    shape = page_shape(
        setting,
        page=1,
        n_sinks=parameters.sinks,
        window=parameters.recent - 1,
        proxy="key",
        rule=parameters.rule,
    )
    method = PagedMethod(
        "oracle",
        shape,
        0,
        partial(budget_tokens, parameters.sparse_budget),
        lambda n_tokens: 0,
        pools(*of, setting.ctx_size),
        0.0,
        host_bytes_per_token(*of),
        row_bytes(setting),
    )
    return PagedKv(setting, method)
