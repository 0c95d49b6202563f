"""YAKV in the configuration of its paper's accuracy figures. `yakv` is our own variant of it.

The host holds keys before RoPE and values as 4-bit codes, the device 2-bit codes of the keys after RoPE,
which choose. Beside the chosen rows a step reads the prompt's last tokens (recent) and all generated ones,
exact and not indexed: on the device, with a GPU those that are older than many others beside the codes. Each
query head has its probabilities over the indexed tokens alone; a group ranks tokens by the largest (rule).

Source: YAKV, arXiv 2604.08426; HIGGS, arXiv 2411.17525.
Differs: the paper keeps decoded rows and counts bits; here rows are codes, decoded in every step. Scales
are root mean squares in float16 (the paper: norms in float32, counted as 16 bits), scores float32 (the
paper rounds them to bfloat16), on a GPU those of queries and grid points rounded to bytes, which cost far
less than the codes (kernels/higgs_score.py). Where Hk * D is no power of two a row has a rotation of its own
(kernels/rotate.py) or is padded. A further prompt indexes what lies before its last tokens, and codes that
are there stay. Tokens that a cut moves back among the last ones come from their codes.
Bytes: rotation and scale of a K or V row span all KV heads, w = Hk * D coordinates (padded). A token is w +
4 bytes on the host: w / 2 of codes and a scale of 2, each for K and for V; per token L * (w + 4) there and
L * Hk * (D / 4 + 2) on the device. Gross per step and layer k * (w + 4), as the paper counts: k rows of
every KV head with their share of the scales. Moved: (w + 4) for every token that some head chose, since no
head's part of a row can be decoded without the rest; that is up to Hk times the gross bytes. A GPU's kernel
reads a row again for every further head that chose it, which is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..kernels.higgs_code import coded_width
from ..kernels.paper_layout import PaperShape, ring_len
from ..kernels.rotate import rotation_factors
from ..kernels.select_topk import RULES
from ..ops import ELEMENT_BYTES
from .budget import budget_tokens, check_budget, check_choice, check_range
from .contract import GpuPools, KvSetting, Pools, StepBytes
from .paged import PagedKv, PagedMethod
from .staging import staging_bytes
from .step_scratch import asking, score_bytes

if TYPE_CHECKING:
    from ..config import ModelConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """sparse_budget: tokens, or a share of the prompt, read per KV head and step beside the first
    (prefix_budget), the last (recent) and the generated tokens.

    Raises: ValueError for a value out of range.
    """

    sparse_budget: float = 0.03125
    prefix_budget: int = 0
    recent: int = 64
    rule: str = "max"

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_range("prefix_budget", self.prefix_budget, 0, 1 << 20)
        check_range("recent", self.recent, 0, 1 << 20)
        check_choice("rule", self.rule, RULES)


def token_bytes(config: ModelConfig) -> int:
    """Bytes of one token's K and V codes and scales in one layer."""
    return coded_width(config.n_kv_heads * config.head_dim) + 4


def host_bytes_per_token(config: ModelConfig) -> int:
    """Bytes: L * (w + 4)."""
    return config.n_layers * token_bytes(config)


def device_bytes_per_token(config: ModelConfig) -> int:
    """Bytes: L * Hk * (D / 4 + 2)."""
    return config.n_layers * config.n_kv_heads * (config.head_dim // 4 + 2)


def pools(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> Pools:
    """Bytes: the bytes per token, and exact rows of the first and last ones. For a slot filled by its prompt:
    a generated token takes an exact row, for which a GPU has room beside the codes, and for the newest ones
    on the device; a step there brings together as many rows as a slot can hold exactly, all.

    Raises: ValueError for a head size without a rotation.
    """
    rotation_factors(config.head_dim)
    layer_row = 2 * config.n_kv_heads * config.head_dim * ELEMENT_BYTES[kind]
    row, first_and_last = config.n_layers * layer_row, parameters.prefix_budget + parameters.recent
    ring_places = parameters.prefix_budget + ring_len(n_tokens, parameters.recent)
    return Pools(
        device={
            "selectors": n_tokens * device_bytes_per_token(config),
            "first and last tokens": row * min(n_tokens, first_and_last),
        },
        host={"codes and scales": n_tokens * host_bytes_per_token(config)},
        transient={
            "staging": staging_bytes(config, kind, n_tokens),
            "RoPE table": 4 * config.head_dim * n_tokens,
        },
        gpu=GpuPools(
            step=layer_row * n_tokens + score_bytes(config, n_tokens),
            asking=asking(config, 0),
            device=row * (ring_places - min(n_tokens, first_and_last)),
            host=row * n_tokens,
            row_width=coded_width(config.n_kv_heads * config.head_dim),
        ),
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: L * k * (w + 4), as the paper counts; up to Hk times that cross a link."""
    selected = min(budget_tokens(parameters.sparse_budget, n_tokens), n_tokens)
    device = sum(pools(config, parameters, kind, n_tokens).device.values())
    return StepBytes(device, config.n_layers * selected * token_bytes(config))


def build(setting: KvSetting, parameters: Parameters) -> PagedKv:
    """Raises: ValueError for a head size without a rotation."""
    config, kind = setting.config, setting.kind
    shape = PaperShape(
        group=config.n_heads // config.n_kv_heads,
        head_dim=config.head_dim,
        kind=kind,
        n_sinks=parameters.prefix_budget,
        recent=parameters.recent,
        rule=parameters.rule,
        inv_freq=tuple(setting.inv_freq.tolist()),
        rope_scale=setting.rope_scale,
    )
    method = PagedMethod(
        "yakv-paper",
        shape,
        0,
        partial(budget_tokens, parameters.sparse_budget),
        lambda n_tokens: 0,
        pools(config, parameters, kind, setting.ctx_size),
        device_bytes_per_token(config),
        host_bytes_per_token(config),
        token_bytes(config),
        row_heads=config.n_kv_heads,
    )
    return PagedKv(setting, method)
