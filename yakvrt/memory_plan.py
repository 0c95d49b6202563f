"""How much memory a model and its KV cache take, and how much context fits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .chunk_size import LOGITS_CHUNK
from .kernels.pack_size import TILE_PACK

if TYPE_CHECKING:
    from .config import ModelConfig
    from .kvcache.contract import Pools
    from .weights import SourceTensor

MAX_CONTEXT = 1 << 31
FIXED_BYTES = 250 << 20  # interpreter, libraries, kernels, tokenizer, one tensor on its way in


def activation_bytes(config: ModelConfig, chunk: int) -> int:
    """Bytes of the buffers that the recorded steps hold: prefill, prefill with all logits, decode.

    Per row of a step: hidden states, q, k, v before and after RoPE, the feed-forward, and the packed
    activations.
    """
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    if config.n_experts:
        # every token visits n_experts_used experts, and the last pack of an expert may be nearly empty
        places = (
            config.n_experts_used + TILE_PACK * min(config.n_experts, chunk * config.n_experts_used) / chunk
        )
        feed_forward = places * (3 * config.expert_ffn_dim + 2 * config.hidden_dim)
    else:
        feed_forward = 3 * config.ffn_dim
    row = 3 * config.hidden_dim + 5 * q + 4 * kv + feed_forward
    logits_chunk = min(chunk, LOGITS_CHUNK)
    return int(4 * (row * (chunk + logits_chunk) + config.vocab_size * logits_chunk * 2))


def prompt_bytes(pools: Pools, config: ModelConfig, n_tokens: int) -> int:
    """Bytes of a prompt of n_tokens under way: what the method needs, hidden states between layers."""
    return sum(pools.transient.values()) + 4 * config.hidden_dim * n_tokens


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be planned: tensors as `dtype`, prompts in chunks, n_slots slots of ctx_size tokens.

    ctx_size 0: as many as the model or memory takes. pools(n) are those of a slot of n tokens. cache_bytes of
    host memory are for what slots held.
    """

    config: ModelConfig
    tensors: Mapping[str, SourceTensor]
    dtype: str
    chunk: int
    pools: Callable[[int], Pools]
    n_slots: int
    ctx_size: int
    cache_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Memory of one kind: its name, what is free of it, and what a model will take of it, in bytes.

    kv_bytes(n) is for a context of n tokens; work_bytes include a prefix cache.
    """

    name: str
    available_bytes: int
    weight_bytes: int
    work_bytes: int
    kv_bytes: Callable[[int], int]

    @property
    def largest_context(self) -> int:
        """The tokens that fit, in runs of 16."""
        left = self.available_bytes - self.weight_bytes - self.work_bytes
        # memory never falls as the context grows
        return 16 * bisect_right(range(16, MAX_CONTEXT, 16), left, key=self.kv_bytes)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a model takes of every kind of memory. host_rows: a KV method's rows for the host cross a link."""

    places: tuple[Place, ...]
    model_context: int
    host_rows: bool = False

    @property
    def scarcest(self) -> Place:
        return min(self.places, key=lambda place: place.largest_context)

    @property
    def largest_context(self) -> int:
        return self.scarcest.largest_context

    def context(self, ctx_size: int) -> int:
        """The context in tokens: ctx_size, or for 0 the model's own, or what fits of it.

        Raises: ValueError when the weights, or the context asked for, do not fit.
        """
        place, largest = self.scarcest, self.largest_context
        free = gib(place.available_bytes)
        if largest == 0:
            raise ValueError(
                f"the weights take {gib(place.weight_bytes)}, the work on them {gib(place.work_bytes)}, "
                f"and {free} of {place.name} is free; choose a smaller model, --dtype q4_0 or a smaller "
                "--ubatch-size or --cache-ram"
            )
        if ctx_size > largest:
            raise ValueError(
                f"a context of {ctx_size} tokens needs {gib(place.kv_bytes(ctx_size))} of {place.name} for "
                f"its KV cache beside {gib(place.weight_bytes)} of weights, {free} is free; "
                f"the largest that fits is --ctx-size {largest}"
            )
        return ctx_size or min(self.model_context, largest)


def gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"
