"""ShadowKV (Sun et al., 2024, arXiv 2410.21465): keys of low rank on the device, values fetched by chunks.

Keys before RoPE lie near a space of `rank` dimensions, shared by all heads of a layer: K ~ U V^T. A chunk is
chosen by its landmark, the mean of its keys; chunks whose keys are unlike their mean (outliers), the last
chunks and generated tokens stay on the device exactly. Chunks of the step before are used again.

A cut leaves the chunks that lie in front of it, but the last ones: their landmarks and low-rank keys stay as
they were, and everything behind them is read exactly. A further prompt makes everything anew.

Differs: U s is K times the eigenvectors of K^T K, which equals the SVD's. The host holds keys too (the paper
drops them), so that a further prompt starts from exact rows, which RoPE turns back. Generated tokens cost a
full row each on the device, as in the paper; a GPU holds chunk_layout.GENERATED of them there, others are
read where the host's rows are, on the CPU all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..kernels.chunk_layout import ChunkShape
from ..kernels.select_topk import RULES
from ..ops import ELEMENT_BYTES
from .budget import budget_tokens, check_budget, check_choice, check_range
from .contract import GpuPools, KvSetting, Pools, StepBytes
from .paged import PagedKv, PagedMethod, row_bytes
from .staging import staging_bytes
from .step_scratch import asking, score_bytes

if TYPE_CHECKING:
    from ..config import ModelConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """sparse_budget: tokens, or a share of the prompt, fetched in chunks per KV head and step.

    outliers, local: tokens in outlier chunks and in the last chunks of the prompt.
    Raises: ValueError for a value out of range.
    """

    sparse_budget: float = 2048
    rank: int = 160
    chunk: int = 8
    outliers: int = 384
    local: int = 32
    rule: str = "max"

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_range("rank", self.rank, 1, 1 << 16)
        check_range("chunk", self.chunk, 1, 1024)
        check_range("outliers", self.outliers, 0, 1 << 20)
        check_range("local", self.local, 0, 1 << 20)
        check_choice("rule", self.rule, RULES)

    def chunks(self, n_tokens: int) -> int:
        """Chunks fetched in a step for a prompt of n_tokens."""
        return max(1, budget_tokens(self.sparse_budget, n_tokens) // self.chunk)

    def places(self, n_tokens: int) -> int:
        """Places for fetched chunks in a slot of n_tokens."""
        return min(self.chunks(n_tokens), max(1, n_tokens // self.chunk))


def host_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: L * Hk * 2 * D * element size (the paper's host holds V alone: half of it)."""
    return config.n_layers * config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]


def device_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: L * (2 * min(rank, Hk * D) + (element size * Hk * D + 4 * Hk) / chunk)."""
    width = config.n_kv_heads * config.head_dim
    landmark = ELEMENT_BYTES[kind] * width + 4 * config.n_kv_heads
    return config.n_layers * (2 * _rank(config, parameters) + landmark / parameters.chunk)


def pools(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> Pools:
    """Bytes: the bytes per token; exact rows of outliers and last tokens, the basis of the keys, and the
    chunks of the step before. For a slot filled by its prompt: a generated token takes a full row.

    On a GPU a ring has places for generated tokens, and rows of low rank are whole pieces of 16 bytes.
    """
    width, rank = config.n_kv_heads * config.head_dim, _rank(config, parameters)
    row = 2 * width * ELEMENT_BYTES[kind]
    lasting = min(n_tokens, parameters.outliers + parameters.local + parameters.chunk)
    places, padding = parameters.places(n_tokens), -rank % 8
    shape = _shape(config, parameters, kind)
    on_gpu = row * (shape.ring_len(n_tokens) - lasting)
    on_gpu += row * shape.outlier_chunks(shape.most_chunks(n_tokens)) * parameters.chunk
    on_gpu += 2 * padding * (n_tokens + width) + 4 * config.n_kv_heads * (places + 2)
    return Pools(
        device={
            "low-rank keys and landmarks": int(n_tokens * device_bytes_per_token(config, parameters, kind)),
            "basis": config.n_layers * 2 * rank * width,
            "outliers and last tokens": config.n_layers * row * lasting,
            "fetched chunks": config.n_layers * row * places * parameters.chunk,
        },
        host={"keys and values": int(n_tokens * host_bytes_per_token(config, parameters, kind))},
        transient={
            "staging": staging_bytes(config, kind, n_tokens),
            "RoPE table": 4 * config.head_dim * n_tokens,
        },
        gpu=GpuPools(
            step=row * n_tokens + score_bytes(config, shape.most_chunks(n_tokens)),
            asking=asking(config, 0),
            device=config.n_layers * on_gpu,
        ),
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: values alone, L * Hk * rows * D * element size."""
    held, chunk = pools(config, parameters, kind, n_tokens).device, parameters.chunk
    left = n_tokens // chunk - parameters.local // chunk - parameters.outliers // chunk
    selected = max(0, min(parameters.chunks(n_tokens), left)) * chunk
    device = sum(n for name, n in held.items() if name != "fetched chunks")
    return StepBytes(device, selected * int(host_bytes_per_token(config, parameters, kind)) // 2)


def build(setting: KvSetting, parameters: Parameters) -> PagedKv:
    of = setting.config, parameters, setting.kind
    method = PagedMethod(
        "shadowkv",
        _shape(*of, tuple(setting.inv_freq.tolist()), setting.rope_scale),
        0,
        parameters.chunks,
        parameters.places,
        pools(*of, setting.ctx_size),
        device_bytes_per_token(*of),
        host_bytes_per_token(*of),
        row_bytes(setting) // 2,  # values alone
    )
    return PagedKv(setting, method)


def _rank(config: ModelConfig, parameters: Parameters) -> int:
    return min(parameters.rank, config.n_kv_heads * config.head_dim)


def _shape(
    config: ModelConfig,
    parameters: Parameters,
    kind: str,
    inv_freq: tuple[float, ...] = (),
    rope_scale: float = 1.0,
) -> ChunkShape:
    return ChunkShape(
        group=config.n_heads // config.n_kv_heads,
        head_dim=config.head_dim,
        kind=kind,
        page=parameters.chunk,
        rule=parameters.rule,
        rank=_rank(config, parameters),
        outliers=parameters.outliers,
        local=parameters.local,
        inv_freq=inv_freq,
        rope_scale=rope_scale,
    )
