"""What one exact prefill makes of a prompt, kept so that any KV method can take the prompt in without the
model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from yakvrt.kvcache.contract import AttentionInput, KvMethod, KvSetting
from yakvrt.ops import Buffer, KvRows, Ops, element_type

CHUNK = 256

# (values [n, Hk * D] as they rest, position of the first) -> values to be taken in instead
Change = Callable[[np.ndarray, int], np.ndarray]


def unchanged(values: np.ndarray, first: int) -> np.ndarray:
    return values


def input_widths(setting: KvSetting) -> dict[str, int]:
    """The width of every field of AttentionInput."""
    config = setting.config
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {"h": config.hidden_dim, "q_plain": q, "k_plain": kv, "q": q, "k": kv, "v": kv}


def input_buffers(setting: KvSetting, ops: Ops) -> AttentionInput:
    """Buffers of the bench's own in the place of the model's."""
    widths = input_widths(setting)
    return AttentionInput(*(ops.buffer(widths[field.name]) for field in fields(AttentionInput)))


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Queries after RoPE, exact keys and values of all layers; keys and values as they rest.

    Shapes: q float32 [L, n, Hq * D], k and v [L, n, Hk * D] of the setting's kind.
    Bytes: L * (4 * Hq * D + 2 * Hk * D * element size) per token.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray

    @classmethod
    def empty(cls, setting: KvSetting, n: int) -> PromptRows:
        n_layers, widths = setting.config.n_layers, input_widths(setting)
        dtype = element_type(setting.kind)
        return cls(
            np.empty((n_layers, n, widths["q"]), np.float32),
            np.empty((n_layers, n, widths["k"]), dtype),
            np.empty((n_layers, n, widths["v"]), dtype),
        )

    @property
    def n_tokens(self) -> int:
        return self.q.shape[1]


class CapturePrompt:
    """Full attention's prefill that also fills PromptRows; it decodes nothing."""

    def __init__(self, full: KvMethod, rows: PromptRows) -> None:
        self._full, self._rows = full, rows

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        self._full.restore(layer, slot, n_held)

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        batch = ops.batch

        def take() -> None:
            n, first = int(batch.n_rows[0]), int(batch.positions[0])
            for name in ("q", "k", "v"):
                buffer: Buffer = getattr(attention, name)
                getattr(self._rows, name)[layer, first : first + n] = buffer.data[:n, : buffer.width]

        ops.call(take)
        return self._full.prefill(ops, layer, attention)

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        self._full.store(layer, slot, n_held, n_new)


def feed(
    setting: KvSetting, method: KvMethod, slot: int, rows: PromptRows, values: Change = unchanged
) -> None:
    """A method takes the prompt in, layer by layer, as Runner.prefill has it do.

    What was not captured is NaN: a method that comes to read it shows.
    """
    backend, config = setting.backend, setting.config
    recorder = backend.record(
        CHUNK,
        inv_freq=setting.inv_freq,
        rope_scale=setting.rope_scale,
        heads=(config.n_heads, config.n_kv_heads, config.head_dim),
    )
    attention = input_buffers(setting, recorder)
    for field in fields(AttentionInput):
        getattr(attention, field.name).data[:] = np.nan
    for layer in range(config.n_layers):
        method.prefill(recorder, layer, attention)
        recorder.next_part()
    step = backend.finish(recorder)
    step.batch.slots[:] = slot
    for layer in range(config.n_layers):
        method.restore(layer, slot, 0)
        for first in range(0, rows.n_tokens, CHUNK):
            last = min(first + CHUNK, rows.n_tokens)
            n = step.batch.n_rows[0] = last - first
            step.batch.positions[:n] = np.arange(first, last)
            for buffer, held in ((attention.q, rows.q), (attention.k, rows.k)):
                buffer.data[:n, : buffer.width] = held[layer, first:last]
            attention.v.data[:n, : attention.v.width] = values(rows.v[layer, first:last], first)
            step.run(layer)
        method.store(layer, slot, 0, rows.n_tokens)
