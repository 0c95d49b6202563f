"""What choosing takes of a GPU, for the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import ModelConfig


def asking(config: ModelConfig, dense_layers: int) -> int:
    """Query heads that choose pages together; 0 of a model that reads everything in all layers."""
    return config.n_heads // config.n_kv_heads if dense_layers < config.n_layers else 0


def score_bytes(config: ModelConfig, n_pages: int) -> int:
    """Bytes: what a step on a GPU needs to choose among n_pages: logits 4 * Hq, weights and candidates
    12 * Hk of each.
    """
    return n_pages * (4 * config.n_heads + 12 * config.n_kv_heads)
