"""What a KV method is: verbs over slots. A slot holds the keys and values of one sequence.

A prompt is taken in layer by layer: restore(), then a prefill step per chunk, then store(). prefill() and
decode() are called while a step is recorded; slots and positions come from the step's Batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from ..ops import Buffer, KvRows, Ops

if TYPE_CHECKING:
    from ..backend import Backend, SlotValues
    from ..config import ModelConfig
    from ..kernels.yakv_layout import YakvShape
    from ..weights import Weights


@dataclass(frozen=True, slots=True)
class KvSetting:
    """What a method is built for: n_slots slots of ctx_size tokens; exact rows are numbers of `kind`.

    RoPE turns pair i by position * inv_freq[i], and scales by rope_scale.
    """

    backend: Backend
    config: ModelConfig
    weights: Weights
    n_slots: int
    ctx_size: int
    kind: str
    inv_freq: np.ndarray
    rope_scale: float


@dataclass(frozen=True, slots=True)
class CodedPools:
    """Rows of codes in a slot, as kernels are asked for: `shape` tells which; of a head a step selects up to
    `most_selected`, and a cache of rows that rest on the host has n_places.
    """

    shape: YakvShape
    most_selected: int
    n_places: int


@dataclass(frozen=True, slots=True)
class GpuPools:
    """What one slot's pools take on a GPU beyond Pools, and are asked kernels for.

    Bytes: `device` of its memory; `host` where Pools.host lies, `dense` of which are on the GPU in any case;
    `step`, that a step of the slot brings together and chooses by; `next_layer`, of a prompt where one of its
    layers is stored while the next computes; `queries` of Pools.transient, which the host holds.
    Kernels: `asking` query heads choose together; `row_width` numbers of a row of codes that spans all KV
    heads; `coded` rows of one head.
    """

    device: int = 0
    host: int = 0
    dense: int = 0
    step: int = 0
    next_layer: int = 0
    queries: int = 0
    asking: int = 0
    row_width: int = 0
    coded: CodedPools | None = None


@dataclass(frozen=True, slots=True)
class Pools:
    """Bytes of one slot by what they hold, on the device and on the host; and what a prompt needs while it is
    taken in.
    """

    device: Mapping[str, int]
    host: Mapping[str, int]
    transient: Mapping[str, int]
    gpu: GpuPools = GpuPools()

    @property
    def slot_bytes(self) -> int:
        return sum(self.device.values()) + sum(self.host.values())


class StepBytes(NamedTuple):
    """Bytes that a decode step reads for a slot whose tokens are all from its prompt: of the pools on the
    device all but caches of rows; from the host the selected rows, before any is found in a cache.
    """

    device: int
    host: int


class TokenRows(NamedTuple):
    """How an array is divided among tokens: along `axis`, every `size` entries belong to `tokens` tokens in
    turn, the first to those from position `first` on. They are complete once `behind` further tokens are
    held, and should then stay as they are: what has changed since is held again by those who share it.
    """

    axis: int
    tokens: int = 1
    first: int = 0
    behind: int = 0
    size: int = 1

    def complete(self, n: int) -> int:
        """How many entries along the axis are complete once n tokens are held."""
        return max(0, n - self.first - self.behind) // self.tokens * self.size

    def reaching(self, n: int) -> int:
        """How many belong to the first n tokens, if only in part."""
        return -(-max(0, n - self.first) // self.tokens) * self.size


BY_TOKEN = TokenRows(axis=2)  # of arrays [L, H, tokens, ...]


class StateArray(NamedTuple):
    """A part of a slot's state, to read and to write. Whole numbers that place something lie
    within `limits`, both included. Without `rows` it is of all tokens together.
    """

    values: SlotValues
    limits: tuple[int, int] | None = None
    rows: TokenRows | None = None


@dataclass(frozen=True, slots=True)
class AttentionInput:
    """What a layer knows when it attends: enough for every method.

    Shapes: h [B, E] the normed hidden state; q [B, Hq*D], k [B, Hk*D] after RoPE; q_plain, k_plain before; v
    [B, Hk*D].
    """

    h: Buffer
    q_plain: Buffer
    k_plain: Buffer
    q: Buffer
    k: Buffer
    v: Buffer


class KvMethod(Protocol):
    """A KV cache method."""

    def open(self, n_tokens: int) -> int:
        """Reserves a slot for n_tokens tokens. Raises: ValueError when it can never fit, RuntimeError when
        none is free.
        """

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        """Before a layer's chunks: makes the rows that prefill() names hold the slot's n_held tokens, as well
        as the method still knows them.
        """

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        """Records: write the rows of a chunk. Returns where the exact rows so far lie, for the model's
        attention.
        """

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        """After a layer's chunks: takes over the n_new exact rows behind the first n_held."""

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        """Records: take in one token per slot and attend over each slot's history into out [B, Hq*D]."""

    def truncate(self, slot: int, n_held: int, n: int) -> int:
        """Forgets all but the first n of n_held tokens, also those of an interrupted prompt behind them. Of
        the arrays of state(), rows that belong only to tokens behind the first n are not read.

        Returns: how many are still held, at most n.
        """

    def state(self, slot: int, n_held: int) -> Mapping[str, StateArray]:
        """Everything by which a slot of n_held tokens differs from an empty one; a slot emptied by truncate()
        that is given equal arrays is the same slot. Names, types, shapes and limits follow from n_held and
        the parameters alone, not from the slot's size or its past.
        """

    def release(self, slot: int) -> None: ...

    def stats(self) -> Mapping[str, float | str]:
        """The method's name, its capacity and bytes."""
