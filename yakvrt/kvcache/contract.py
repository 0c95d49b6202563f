"""What a KV method is: five verbs over slots. A slot holds the keys and values of one sequence.

prefill() and decode() are called while a step is recorded; slots and positions come from the step's Batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..ops import Buffer, KvRows, Ops


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

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        """Records: take in the rows of a prompt chunk. Returns where the exact rows so far lie, for the
        model's attention.
        """

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        """Records: take in one token per slot and attend over each slot's history into out [B, Hq*D]."""

    def release(self, slot: int) -> None: ...

    def stats(self) -> Mapping[str, float | str]:
        """The method's name, its capacity and bytes."""
