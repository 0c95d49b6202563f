"""ArkVale (Chen et al., NeurIPS 2024): pages recalled to a device cache by the score of their digests.

The digest of a page is a cuboid around the middle of its keys, as wide as their mean distance from it. The
first and the last pages stay on the device; of the others the best are recalled in every step and overwrite
the resident pages of least score; attention reads all resident pages.

Differs: the cache starts with the first and last pages alone, where the paper fills it with the choice of the
prompt's last query. Every page is also on the host (the paper backs pages up when they are full). Generated
tokens join the pages. Every KV head has pages of its own, as in YAKV's comparison; in ArkVale's code all
heads share them by default. The mean over query heads is the paper's rule.
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
    """sparse_budget: tokens, or a share of the prompt, in pages wanted per KV head and step, rounded up.

    cache_budget: the same for the resident pages, the first (sinks) and last (window) ones included; 0 holds
    no more than is wanted.
    Raises: ValueError for a value out of range.
    """

    sparse_budget: float = 1024
    cache_budget: float = 4096
    page: int = 32
    sinks: int = 2
    window: int = 2
    dense_layers: int = 2
    rule: str = "mean"

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_budget("cache_budget", self.cache_budget, zero=True)
        check_range("page", self.page, 1, 1024)
        check_range("sinks", self.sinks, 0, 1024)
        check_range("window", self.window, 1, 1024)
        check_range("dense_layers", self.dense_layers, 0, 1024)
        check_choice("rule", self.rule, RULES)

    def pages(self, n_tokens: int) -> tuple[int, int]:
        """Pages wanted in a step, and the most resident beside the first and last ones, for a prompt."""
        wanted = -(-budget_tokens(self.sparse_budget, n_tokens) // self.page)
        if not self.cache_budget:
            return wanted, wanted
        cached = budget_tokens(self.cache_budget, n_tokens) // self.page
        return wanted, max(wanted, cached - self.sinks - self.window)

    def places(self, n_tokens: int) -> int:
        """Places for recalled pages in a slot of n_tokens."""
        return min(self.pages(n_tokens)[1], -(-n_tokens // self.page))


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
    """Bytes: the bytes per token, and the resident pages of a prompt of n_tokens."""
    row = config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]
    pages = parameters.sinks + parameters.window + parameters.places(n_tokens)
    sparse = max(0, config.n_layers - parameters.dense_layers)
    return Pools(
        device={
            "digests and dense layers": int(n_tokens * device_bytes_per_token(config, parameters, kind)),
            "resident pages": sparse * row * pages * parameters.page,
        },
        host={"keys and values": int(n_tokens * host_bytes_per_token(config, parameters, kind))},
        transient={"staging": staging_bytes(config, kind, n_tokens)},
        gpu=GpuPools(
            step=row * pages * parameters.page + score_bytes(config, n_tokens // parameters.page),
            asking=asking(config, parameters.dense_layers),
        ),
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: (L - dense) * Hk * rows * 2 * D * element size."""
    selected = min(parameters.pages(n_tokens)[0] * parameters.page, n_tokens)
    device = int(n_tokens * device_bytes_per_token(config, parameters, kind))
    return StepBytes(device, selected * int(host_bytes_per_token(config, parameters, kind)))


def build(setting: KvSetting, parameters: Parameters) -> PagedKv:
    of, page = (setting.config, parameters, setting.kind), parameters.page
    shape = page_shape(
        setting,
        page=page,
        n_sinks=parameters.sinks * page,
        window=(parameters.window - 1) * page,
        proxy="centred",
        rule=parameters.rule,
    )
    method = PagedMethod(
        "arkvale",
        shape,
        parameters.dense_layers,
        lambda n_tokens: parameters.pages(n_tokens)[0],
        lambda n_tokens: parameters.pages(n_tokens)[1],
        pools(*of, setting.ctx_size),
        device_bytes_per_token(*of),
        host_bytes_per_token(*of),
        row_bytes(setting),
    )
    return PagedKv(setting, method)
