"""A KV method over activations of the test's own making, without a model around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yakvrt.backend import Backend, Step
from yakvrt.config import ModelConfig, rope_frequencies
from yakvrt.cpu.backend import CpuBackend
from yakvrt.kvcache import open_method
from yakvrt.kvcache.contract import AttentionInput, KvSetting

CHUNK = 64
N_SLOTS = 2


@dataclass(slots=True)
class _Recorded:
    step: Step
    attention: AttentionInput
    out: Any


class KvSlots:
    """Takes in prompts and decodes, layer by layer, as Runner does, on the CPU or a backend given.

    Shapes: q [n, Hq, D], k and v [n, Hk, D].
    """

    def __init__(
        self,
        name: str,
        args: Mapping[str, str],
        *,
        heads: tuple[int, int, int] = (4, 2, 16),
        n_layers: int = 1,
        ctx_size: int = 512,
        kind: str = "f32",
        weights: Any = None,
        backend: Any = None,
    ) -> None:
        n_heads, n_kv_heads, head_dim = heads
        self.config = ModelConfig(
            family="llama",
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            hidden_dim=64,
            ffn_dim=64,
            vocab_size=64,
            context_len=ctx_size,
            norm_eps=1e-5,
            rope_theta=10000.0,
        )
        self.backend: Backend = backend or CpuBackend(1)
        self.inv_freq, self.scale = rope_frequencies(self.config)
        method, self.parameters = open_method(name, args)
        made: Any = weights(self.backend) if weights else None
        sizes = (N_SLOTS, ctx_size, kind)
        setting = KvSetting(self.backend, self.config, made, *sizes, self.inv_freq, self.scale)
        self.kv = method.build(setting, self.parameters)
        self._heads = heads
        self._prefill = [self._record(CHUNK, layer) for layer in range(n_layers)]
        recorder = self._recorder(1)
        inputs = [self._inputs(recorder) for _ in range(n_layers)]
        outs = [recorder.buffer(n_heads * head_dim) for _ in range(n_layers)]
        for layer in range(n_layers):
            self.kv.decode(recorder, layer, inputs[layer], outs[layer])
            recorder.next_part()
        step = self.backend.finish(recorder)
        self._decode = [_Recorded(step, *pair) for pair in zip(inputs, outs, strict=True)]

    @property
    def staged(self) -> Any:
        """Where the exact rows of a prompt lie."""
        return self._prefill[0].out

    def __enter__(self) -> KvSlots:
        return self

    def __exit__(self, *_: object) -> None:
        self.backend.close()

    def _recorder(self, capacity: int) -> Any:
        return self.backend.record(capacity, inv_freq=self.inv_freq, rope_scale=self.scale, heads=self._heads)

    def _inputs(self, recorder: Any) -> AttentionInput:
        n_heads, n_kv_heads, dim = self._heads
        widths = (64, n_heads * dim, n_kv_heads * dim, n_heads * dim, n_kv_heads * dim, n_kv_heads * dim)
        return AttentionInput(*(recorder.buffer(width) for width in widths))

    def _record(self, capacity: int, layer: int) -> _Recorded:
        recorder = self._recorder(capacity)
        attention = self._inputs(recorder)
        rows = self.kv.prefill(recorder, layer, attention)
        return _Recorded(self.backend.finish(recorder), attention, rows)

    def prefill(
        self, slot: int, n_held: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, layer: int = 0
    ) -> None:
        self.kv.restore(layer, slot, n_held)
        for first in range(0, len(k), CHUNK):
            part = slice(first, first + CHUNK)
            self._run(self._prefill[layer], slot, n_held + first, q[part], k[part], v[part])
        self.kv.store(layer, slot, n_held, len(k))

    def decode(
        self,
        slot: int,
        position: int,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        layer: int = 0,
        h: np.ndarray | None = None,
    ) -> np.ndarray:
        """One token: q [Hq, D], k and v [Hk, D] -> [Hq, D]."""
        recorded = self._decode[layer]
        if h is not None:
            self.backend.write(recorded.attention.h, np.pad(h, (0, 64 - len(h)))[None])
        self._run(recorded, slot, position, q[None], k[None], v[None], layer)
        return self.backend.read(recorded.out, 0, 1).reshape(q.shape).copy()

    def _run(
        self,
        recorded: _Recorded,
        slot: int,
        position: int,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        part: int = 0,
    ) -> None:
        batch, n = recorded.step.batch, len(k)
        batch.n_rows[0], batch.slots[:n] = n, slot
        batch.positions[:n] = np.arange(position, position + n)
        for buffer, rows in ((recorded.attention.q, q), (recorded.attention.k, k), (recorded.attention.v, v)):
            self.backend.write(buffer, rows.reshape(n, -1))
        recorded.step.run(part)
