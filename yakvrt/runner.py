"""Token ids in, hidden states and logits out: the recorded steps of one model over one KV cache."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import model
from .chunk_size import LOGITS_CHUNK
from .config import ModelConfig, rope_frequencies
from .kvcache.contract import KvSetting
from .trace_log import NO_TRACE, Trace
from .trace_records import NO_LAYER

if TYPE_CHECKING:
    from .backend import Backend, Drawing, Recording, Step
    from .draw import Draw, Next
    from .kvcache.contract import KvMethod
    from .ops import Buffer
    from .weights import Weights


class Runner:
    """Records the steps a model needs, when first needed, and fills in their batches. Not thread-safe.

    `chunk` is the number of prompt tokens per prefill step. No method checks ids, slots and positions against
    their limits; Session does.
    """

    def __init__(
        self,
        backend: Backend,
        config: ModelConfig,
        weights: Weights,
        kv: KvMethod,
        *,
        chunk: int,
        rope_factors: np.ndarray | None = None,
    ) -> None:
        self._backend, self._config, self._weights, self._kv = backend, config, weights, kv
        self.chunk = chunk
        self.logits_chunk = min(chunk, LOGITS_CHUNK)
        self._rope_factors = rope_factors
        self._inv_freq, self._rope_scale = rope_frequencies(config, rope_factors)
        self._steps: dict[tuple[str, int], tuple[Step, Buffer, Buffer]] = {}
        self._drawings: dict[int, Drawing] = {}  # of steps that decode
        self.trace: Trace = NO_TRACE

    def setting(self, n_slots: int, ctx_size: int, kind: str) -> KvSetting:
        """What another KV method over the same model is built for."""
        rope = self._inv_freq, self._rope_scale
        return KvSetting(self._backend, self._config, self._weights, n_slots, ctx_size, kind, *rope)

    def over(self, kv: KvMethod) -> Runner:
        """The same model over another KV cache; weights are shared."""
        model = self._backend, self._config, self._weights
        return Runner(*model, kv, chunk=self.chunk, rope_factors=self._rope_factors)

    def warm_up(self) -> None:
        """Records what every generation uses; the kernels that are missing compile together."""
        keys = [("prefill", self.chunk), ("head", 1), ("decode", 1)]
        recorded = [self._record(*key) for key in keys]
        self._backend.prepare([spec for recorder, _, _ in recorded for spec in recorder.specs])
        for key, (recorder, x, logits) in zip(keys, recorded, strict=True):
            self._steps[key] = self._backend.finish(recorder), x, logits

    def prefill(
        self,
        slot: int,
        start: int,
        ids: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
        *,
        n_last: int = 1,
    ) -> np.ndarray:
        """prefill_steps() at one go. Returns: its hidden states."""
        steps = self.prefill_steps(slot, start, ids, progress, n_last=n_last)
        with self.trace.span("prompt", position=start, tokens=len(ids)):
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    hidden: np.ndarray = end.value
                    return hidden

    def prefill_steps(
        self,
        slot: int,
        start: int,
        ids: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
        *,
        n_last: int = 1,
    ) -> Generator[None, None, np.ndarray]:
        """Takes in the tokens at positions start, start+1, ... of a slot, layer by layer, so that a KV method
        needs exact rows of one layer at a time.

        Yields after every chunk of a layer, where other slots may decode; no other prompt may begin before
        this one ends or is closed. Returns: hidden states float32 [n_last, E] of the last layer and the last
        n_last tokens.
        """
        step, x, _ = self._step("prefill", self.chunk)
        batch, n_layers = step.batch, self._config.n_layers
        chunks = [(at, min(at + self.chunk, len(ids))) for at in range(0, len(ids), self.chunk)]
        states = self._backend.hidden_states(len(ids), x) if len(chunks) > 1 else None
        batch.slots[:] = slot
        found: list[np.ndarray] = []

        def run(part: int, first: int, last: int) -> None:
            n = last - first
            batch.positions[:n] = np.arange(start + first, start + last)
            batch.n_rows[0] = n
            if part == 0:
                batch.tokens[:n] = ids[first:last]
            elif states:
                states.give(first, x, n)
            layer = part - 1 if part else NO_LAYER
            with self.trace.span("prefill", layer, position=start + first, tokens=n):
                step.run(part)
            if part == n_layers:
                wanted = max(0, len(ids) - n_last - first)
                if wanted < n:
                    found.append(self._backend.read(x, wanted, n).copy())
            elif states:
                states.keep(first, x, n)

        try:
            for first, last in chunks:
                run(0, first, last)
            for layer in range(n_layers):
                with self.trace.span("restore", layer, whole=True, tokens=start):
                    self._kv.restore(layer, slot, start)
                for i, (first, last) in enumerate(chunks):
                    run(1 + layer, first, last)
                    if progress:
                        done = (layer * len(chunks) + i + 1) / (n_layers * len(chunks))
                        progress(int(done * len(ids)), len(ids))
                    yield
                with self.trace.span("store", layer, whole=True, tokens=len(ids)), self._backend.beside():
                    self._kv.store(layer, slot, start, len(ids))
        finally:
            try:
                self._backend.settle()
            finally:
                if states:
                    states.free()
        return found[0] if len(found) == 1 else np.concatenate(found)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """The logits of one hidden state, or of at most `logits_chunk`.

        Shapes: hidden states [B, E] -> float32 logits [B, V], valid until the next call.
        """
        n = len(hidden)
        step, x, logits = self._step("head", 1 if n == 1 else self.logits_chunk)
        step.batch.n_rows[0] = n
        with self.trace.span("head", tokens=n):
            self._backend.write(x, hidden)
            step.run()
            return self._rows(logits, n)

    def decode(self, slots: Sequence[int], positions: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """One token for each of several slots. Returns: float32 logits [B, V], valid until the next call."""
        step, logits, _ = self._filled(slots, positions, tokens)
        return self._decoded(step, logits, positions)

    def next(
        self,
        slots: Sequence[int],
        positions: Sequence[int],
        tokens: Sequence[int],
        draws: Sequence[Draw | None],
    ) -> Sequence[Next]:
        """decode(), but in place of logits the token, where it is to be drawn and the backend does that.
        Logits are valid until the next call.
        """
        step, logits, drawing = self._filled(slots, positions, tokens)
        if drawing is None or not any(draws):
            return list(self._decoded(step, logits, positions))
        drawing.ask(draws)
        with self.trace.span("decode", position=int(positions[0]), tokens=len(tokens)):
            step.run(0, 2)
            found: list[Next] = [
                self._backend.read(logits, i, i + 1)[0].copy() if drawn is None else drawn
                for i, drawn in enumerate(drawing.drawn(draws))
            ]
        self.trace.sample(self._kv.stats)
        return found

    def _filled(
        self, slots: Sequence[int], positions: Sequence[int], tokens: Sequence[int]
    ) -> tuple[Step, Buffer, Drawing | None]:
        """The step that decodes these tokens, its logits, and what draws from them."""
        n, capacity = len(tokens), self._backend.decode_rows(len(tokens))
        step, _, logits = self._step("decode", capacity)
        batch = step.batch
        batch.tokens[:n], batch.positions[:n], batch.slots[:n] = tokens, positions, slots
        batch.n_rows[0] = n
        return step, logits, self._drawings.get(capacity)

    def _decoded(self, step: Step, logits: Buffer, positions: Sequence[int]) -> np.ndarray:
        with self.trace.span("decode", position=int(positions[0]), tokens=len(positions)):
            step.run()
            rows = self._rows(logits, len(positions))
        self.trace.sample(self._kv.stats)
        return rows

    def _rows(self, logits: Buffer, n: int) -> np.ndarray:
        return self._backend.read(logits, 0, n)

    def _step(self, phase: str, capacity: int) -> tuple[Step, Buffer, Buffer]:
        key = (phase, capacity)
        if key not in self._steps:
            recorder, x, logits = self._record(*key)
            self._steps[key] = self._backend.finish(recorder), x, logits
        return self._steps[key]

    def _record(self, phase: str, capacity: int) -> tuple[Recording, Buffer, Buffer]:
        """The recorded step, its hidden states and its logits; prefill has a part per layer and no logits."""
        config = self._config
        recorder = self._backend.record(
            capacity,
            inv_freq=self._inv_freq,
            rope_scale=self._rope_scale,
            heads=(config.n_heads, config.n_kv_heads, config.head_dim),
        )
        if phase == "decode":
            logits = model.decode(recorder, config, self._weights, self._kv)
            if drawing := recorder.drawing(logits):
                self._drawings[capacity] = drawing
            return recorder, logits, logits
        if phase == "head":
            x = recorder.buffer(config.hidden_dim)
            return recorder, x, model.head(recorder, config, self._weights, x)
        x, record_layer = model.prefill(recorder, config, self._weights, self._kv)
        for layer in range(config.n_layers):
            recorder.next_part()
            record_layer(layer)
        return recorder, x, x
