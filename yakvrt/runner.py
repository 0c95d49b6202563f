"""Token ids in, logits out: the recorded steps of one model over one KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import model
from .config import ModelConfig, rope_frequencies

if TYPE_CHECKING:
    from .cpu.backend import CpuBackend, Step
    from .kvcache.contract import KvMethod
    from .weights import Weights


class Runner:
    """Records the steps a model needs, when first needed, and fills in their batches. Not thread-safe.

    `chunk` is the number of prompt tokens per prefill step.
    """

    def __init__(
        self,
        backend: CpuBackend,
        config: ModelConfig,
        weights: Weights,
        kv: KvMethod,
        *,
        chunk: int,
        rope_factors: np.ndarray | None = None,
    ) -> None:
        self._backend, self._config, self._weights, self._kv = backend, config, weights, kv
        self.chunk = chunk
        self._inv_freq, self._rope_scale = rope_frequencies(config, rope_factors)
        self._steps: dict[tuple[str, int, int], Step] = {}

    def warm_up(self) -> None:
        """Records what every generation uses, so that missing kernels compile together."""
        self._step("prefill", self.chunk, 1)
        self._step("decode", 1, 1)

    def prefill(self, slot: int, start: int, ids: Sequence[int], *, all_logits: bool = False) -> np.ndarray:
        """One chunk of at most `chunk` tokens at positions start, start+1, ... of a slot.

        Returns: float32 logits of the last token [1, V], or of all [len(ids), V]; valid until the next call.
        """
        n = len(ids)
        step = self._step("prefill", self.chunk, self.chunk if all_logits else 1)
        batch = step.batch
        batch.tokens[:n] = ids
        batch.positions[:n] = np.arange(start, start + n)
        batch.slots[:n] = slot
        batch.n_rows[0] = n
        batch.n_logits[0] = n if all_logits else 1
        batch.logit_rows[: batch.n_logits[0]] = np.arange(n) if all_logits else n - 1
        return step.run()

    def decode(self, slots: Sequence[int], positions: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """One token for each of several slots. Returns: float32 logits [B, V], valid until the next call."""
        n = len(tokens)
        step = self._step("decode", n, n)
        batch = step.batch
        batch.tokens[:n], batch.positions[:n], batch.slots[:n] = tokens, positions, slots
        batch.n_rows[0] = batch.n_logits[0] = n
        batch.logit_rows[:n] = np.arange(n)
        return step.run()

    def _step(self, phase: str, capacity: int, n_logits: int) -> Step:
        key = (phase, capacity, n_logits)
        if key not in self._steps:
            config = self._config
            recorder = self._backend.record(
                capacity,
                n_logits=n_logits,
                inv_freq=self._inv_freq,
                rope_scale=self._rope_scale,
                heads=(config.n_heads, config.n_kv_heads, config.head_dim),
            )
            record = model.prefill if phase == "prefill" else model.decode
            logits = record(recorder, config, self._weights, self._kv)
            self._steps[key] = self._backend.finish(recorder, logits, config.vocab_size)
        return self._steps[key]
