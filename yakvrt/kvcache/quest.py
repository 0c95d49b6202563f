"""Quest (Tang et al., ICML 2024, arXiv 2406.10774): pages chosen by an upper bound of their best logit.

Differs: the paper leaves all rows on the GPU and chooses per query head; here rows rest on the host, so that
what is read compares with methods that offload, and the heads of a group choose together by `rule`. Generated
tokens join the pages; the last pages, the one being filled among them, are always read.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """sparse_budget: tokens, or a share of the prompt, read in whole pages per KV head, rounded up; at least
    min_pages. window: the last pages, which are read beside them.

    Raises: ValueError for a value out of range.
    """

    sparse_budget: float = 1024
    page: int = 16
    min_pages: int = 3
    window: int = 1
    dense_layers: int = 2
    rule: str = "max"

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_range("page", self.page, 1, 1024)
        check_range("min_pages", self.min_pages, 1, 1 << 20)
        check_range("window", self.window, 1, 1024)
        check_range("dense_layers", self.dense_layers, 0, 1024)
        check_choice("rule", self.rule, RULES)

    def pages(self, n_tokens: int) -> int:
        """Read in a step, of a prompt of n_tokens."""
        return max(self.min_pages, -(-budget_tokens(self.sparse_budget, n_tokens) // self.page))


def host_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: (L - dense) * Hk * 2 * D * element size."""
    sparse = max(0, config.n_layers - parameters.dense_layers)
    return sparse * config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]


def device_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: digests (L - dense) * Hk * 2 * D / page, rows dense * Hk * 2 * D, times the element size."""
    dense = min(config.n_layers, parameters.dense_layers)
    row = config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]
    return (config.n_layers - dense) * row / parameters.page + dense * row


def pools(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> Pools:
    """Bytes: the bytes per token, and on the device the last pages."""
    row = config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]
    n_read = (parameters.window + parameters.pages(n_tokens)) * parameters.page
    return Pools(
        device={
            "digests and dense layers": int(n_tokens * device_bytes_per_token(config, parameters, kind)),
            "last pages": config.n_layers * row * parameters.page * parameters.window,
        },
        host={"keys and values": int(n_tokens * host_bytes_per_token(config, parameters, kind))},
        transient={"staging": staging_bytes(config, kind, n_tokens)},
        gpu=GpuPools(
            step=row * min(n_read, n_tokens) + score_bytes(config, n_tokens // parameters.page),
            asking=asking(config, parameters.dense_layers),
        ),
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: (L - dense) * Hk * rows * 2 * D * element size."""
    selected = min(parameters.pages(n_tokens) * parameters.page, n_tokens)
    device = sum(pools(config, parameters, kind, n_tokens).device.values())
    return StepBytes(device, selected * int(host_bytes_per_token(config, parameters, kind)))


def build(setting: KvSetting, parameters: Parameters) -> PagedKv:
    of, page = (setting.config, parameters, setting.kind), parameters.page
    shape = page_shape(
        setting,
        page=page,
        n_sinks=0,
        window=(parameters.window - 1) * page,
        proxy="extremes",
        rule=parameters.rule,
    )
    method = PagedMethod(
        "quest",
        shape,
        parameters.dense_layers,
        parameters.pages,
        lambda n_tokens: 0,
        pools(*of, setting.ctx_size),
        device_bytes_per_token(*of),
        host_bytes_per_token(*of),
        row_bytes(setting),
    )
    return PagedKv(setting, method)
