"""A decode step on a GPU, modelled from the bytes that it reads: nothing is run.

A step takes as long as the slower of two: weights and pools on the device at the rate of its memory, or rows
from the host at that of the link. Experts count as often as a batch is expected to choose them. Not counted:
arithmetic, launches, and what one side cannot hide of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from .config import ModelConfig
from .kernels.device_layout import DEVICE_LAYOUTS
from .kvcache.contract import StepBytes
from .weight_shapes import Stored, target_matrices, vector_bytes


@dataclass(frozen=True, slots=True)
class WeightReads:
    """Bytes of a model on a GPU: a step reads the dense ones, and of the experts those that it chooses."""

    held: int
    dense: int
    experts: int
    config: ModelConfig

    def of_step(self, n_tokens: int) -> float:
        """Bytes of a step of n_tokens tokens that choose experts independently."""
        config = self.config
        if not config.n_experts:
            return self.dense
        return self.dense + self.experts * (1 - (1 - config.n_experts_used / config.n_experts) ** n_tokens)


def weight_reads(config: ModelConfig, tensors: Mapping[str, Stored], dtype: str) -> WeightReads:
    """Of the formats that the GPU backend keeps."""
    matrices = [
        (len(dims), prod(dims[:-1]) * DEVICE_LAYOUTS[kind].row_bytes(dims[-1]))
        for kind, dims in target_matrices(config, tensors, dtype, DEVICE_LAYOUTS)
    ]
    experts = sum(n for rank, n in matrices if rank == 3)
    held = vector_bytes(config) + sum(n for _, n in matrices)
    looked_up = 0 if config.tied else matrices[0][1]  # embeddings, of which a token reads a row
    return WeightReads(held, held - experts - looked_up, experts, config)


class ModelledStep(NamedTuple):
    """Milliseconds of its two sides."""

    device_ms: float
    link_ms: float

    @property
    def step_ms(self) -> float:
        return max(self)


def modelled_step(
    weights: WeightReads, read: StepBytes, n_slots: int, memory_gbps: float, link_gbps: float
) -> ModelledStep:
    """`read` is what a slot's attention reads; link_gbps 0: no rows cross a link. Rates in 1e9 bytes/s."""
    device_bytes, link_bytes = weights.of_step(n_slots) + n_slots * read.device, n_slots * read.host
    if not link_gbps:
        device_bytes, link_bytes = device_bytes + link_bytes, 0
    return ModelledStep(device_bytes / memory_gbps / 1e6, link_bytes / (link_gbps or 1) / 1e6)
