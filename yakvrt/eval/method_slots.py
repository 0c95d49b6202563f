"""A KV method that holds a prompt: a copy is fed the gold answer, then the slot itself answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from yakvrt.kl_divergence import log_softmax
from yakvrt.kvcache.contract import KvMethod, KvSetting
from yakvrt.kvcache.slot_state import copy_slot

from .method_specs import MethodSpec

if TYPE_CHECKING:
    from yakvrt.runner import Runner

N_SLOTS = 2  # the prompt's, and its copy


@dataclass(frozen=True, slots=True)
class MethodSlots:
    """Slot 0 of the method holds all of a prompt but its last token."""

    spec: MethodSpec
    parameters: Mapping[str, str]
    method: KvMethod
    runner: Runner

    @classmethod
    def build(cls, spec: MethodSpec, setting: KvSetting, runner: Runner, n_prompt: int) -> MethodSlots:
        parameters = spec.parameters(setting.config, setting.kind, n_prompt)
        module, values = spec.open(parameters)
        method: KvMethod = module.build(setting, values)
        return cls(spec, parameters, method, runner.over(method))

    def teacher_forced(self, slot: int, n_held: int, ids: ListOf[int]) -> Iterator[np.ndarray]:
        """Feeds the ids to a copy of the slot. Yields: float64 log-probabilities [V] after each."""
        copy = self.method.open(n_held + len(ids))
        try:
            copy_slot(self.method, slot, n_held, copy, n_held)
            for i, token in enumerate(ids):
                logits = self.runner.decode([copy], [n_held + i], [token])[0]
                yield log_softmax(logits.astype(np.float64))
        finally:
            self.method.truncate(copy, n_held, 0)
            self.method.release(copy)

    def costs(self, ctx_size: int) -> dict[str, float]:
        """Of a token decoded, all layers together: bytes asked of the host (gross) and moved, rows read; and
        bytes that rest on device and host for a token of a prompt.
        """
        stats: Mapping[str, Any] = self.method.stats()
        steps = max(1, stats.get("steps", 0))
        held = stats["bytes"] / stats["n_slots"] / ctx_size  # full attention says no more
        return {
            **{name: stats.get(name, 0) / steps for name in ("gross_bytes", "moved_bytes", "rows_read")},
            "hit_rate": stats.get("hit_rate", 0.0),
            "device_bytes_per_token": stats.get("device_bytes_per_token", held),
            "host_bytes_per_token": stats.get("host_bytes_per_token", 0.0),
        }


class DecodeSession:
    """sequence.SlotSession of a slot that holds all of a prompt but its last token, which is decoded."""

    def __init__(self, slots: MethodSlots, slot: int, held: ListOf[int], ctx_size: int) -> None:
        self._slots, self._slot, self._ids, self.ctx_size = slots, slot, list(held), ctx_size

    @property
    def ids(self) -> ListOf[int]:
        return self._ids

    @property
    def kv(self) -> Mapping[str, Any]:
        return self._slots.method.stats()

    def prefill(self, ids: ListOf[int], progress: Any = None) -> np.ndarray:
        (last,) = ids
        return self.decode(last)

    def next(self, token: int, draw: object) -> np.ndarray:
        """Evaluations keep to logits."""
        return self.decode(token)

    def decode(self, token: int) -> np.ndarray:
        logits: np.ndarray = self._slots.runner.decode([self._slot], [len(self._ids)], [token])[0].copy()
        self._ids.append(token)
        return logits

    def truncate(self, n: int) -> None:
        """Nothing is cut: a sequence begins with what is held."""
        assert n == len(self._ids)

    def close(self) -> None:
        pass
