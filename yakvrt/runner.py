"""Token ids in, logits out: the recorded steps of one model over one KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import model
from .chunk_size import DEFAULT_CHUNK
from .config import ModelConfig, rope_frequencies

if TYPE_CHECKING:
    from .cpu.backend import CpuBackend, Step
    from .cpu.recorder import Recorder
    from .kvcache.contract import KvMethod
    from .ops import Buffer
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
        # bounds the logits of all rows, which a large vocabulary makes large
        self.logits_chunk = min(chunk, DEFAULT_CHUNK)
        self._inv_freq, self._rope_scale = rope_frequencies(config, rope_factors)
        self._steps: dict[tuple[str, int, int], Step] = {}

    def warm_up(self) -> None:
        """Records what every generation uses; the kernels that are missing compile together."""
        keys = [("prefill", self.chunk, 1), ("decode", 1, 1)]
        recorded = [self._record(*key) for key in keys]
        self._backend.prepare([spec for recorder, _ in recorded for spec in recorder.tape.specs])
        for key, (recorder, logits) in zip(keys, recorded, strict=True):
            self._steps[key] = self._backend.finish(recorder, logits, self._config.vocab_size)

    def prefill(self, slot: int, start: int, ids: Sequence[int], *, all_logits: bool = False) -> np.ndarray:
        """One chunk of at most `chunk` (or `logits_chunk`) tokens at positions start, start+1, ... of a slot.

        Neither this nor decode() checks ids, slots and positions against their limits; Session does.

        Returns: float32 logits of the last token [1, V], or of all [len(ids), V]; valid until the next call.
        """
        n = len(ids)
        capacity = self.logits_chunk if all_logits else self.chunk
        step = self._step("prefill", capacity, capacity if all_logits else 1)
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
            recorder, logits = self._record(*key)
            self._steps[key] = self._backend.finish(recorder, logits, self._config.vocab_size)
        return self._steps[key]

    def _record(self, phase: str, capacity: int, n_logits: int) -> tuple[Recorder, Buffer]:
        config = self._config
        recorder = self._backend.record(
            capacity,
            n_logits=n_logits,
            inv_freq=self._inv_freq,
            rope_scale=self._rope_scale,
            heads=(config.n_heads, config.n_kv_heads, config.head_dim),
        )
        record = model.prefill if phase == "prefill" else model.decode
        return recorder, record(recorder, config, self._weights, self._kv)
