"""One prefill for several KV methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..kvcache.contract import AttentionInput, KvMethod, StateArray
from ..ops import Buffer, KvRows, Ops


class SharedPrompt:
    """The first of several methods of one setting; the others take in the prompts of its slots too.

    A prompt's attention is exact whatever the method, so each of them lays down the same exact rows, is told
    the same queries, and stores what it would have stored alone. They decode over runners of their own.
    """

    def __init__(self, methods: Sequence[KvMethod]) -> None:
        self._first, self._methods = methods[0], tuple(methods)

    def open(self, n_tokens: int) -> int:
        """Raises: as the methods, and RuntimeError when their free slots differ."""
        slots = [method.open(n_tokens) for method in self._methods]
        if len(set(slots)) > 1:
            for method, slot in zip(self._methods, slots, strict=True):
                method.release(slot)
            raise RuntimeError("the methods have different slots free; open and release them together")
        return slots[0]

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        for method in self._methods:
            method.restore(layer, slot, n_held)

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        first, *_ = [method.prefill(ops, layer, attention) for method in self._methods]
        return first

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        for method in self._methods:
            method.store(layer, slot, n_held, n_new)

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        """The first method's: the slot is then no longer the others'."""
        self._first.decode(ops, layer, attention, out)

    def truncate(self, slot: int, n_held: int, n: int) -> int:
        """All are cut to what the most forgetful of them still holds."""
        kept = [n_held] * len(self._methods)
        while True:
            pairs = zip(self._methods, kept, strict=True)
            kept = [method.truncate(slot, held, min(held, n)) for method, held in pairs]
            if min(kept) == max(kept):
                return kept[0]
            n = min(kept)

    def state(self, slot: int, n_held: int) -> Mapping[str, StateArray]:
        return {
            f"{i}.{name}": part
            for i, method in enumerate(self._methods)
            for name, part in method.state(slot, n_held).items()
        }

    def release(self, slot: int) -> None:
        for method in self._methods:
            method.release(slot)

    def stats(self) -> Mapping[str, float | str]:
        return self._first.stats()
