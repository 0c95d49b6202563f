"""Decode steps of full attention's trajectory: what attention was given in every layer, recorded once and
given to a method's decode alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from prompt_capture import Change, input_buffers, input_widths, unchanged

from yakvrt.kvcache.contract import AttentionInput, KvMethod, KvSetting
from yakvrt.ops import Buffer, Ops

NAMES = tuple(field.name for field in fields(AttentionInput))


@dataclass(frozen=True, slots=True)
class StepInputs:
    """AttentionInput of all layers and steps; the first step is that of position `first`.

    Shapes: arrays float32 [L, steps, width] by the input's name.
    """

    first: int
    arrays: dict[str, np.ndarray]

    @classmethod
    def empty(cls, setting: KvSetting, first: int, n_steps: int) -> StepInputs:
        n_layers = setting.config.n_layers
        widths = input_widths(setting)
        return cls(first, {name: np.empty((n_layers, n_steps, widths[name]), np.float32) for name in NAMES})

    @property
    def n_steps(self) -> int:
        return self.arrays["q"].shape[1]


class RecordInputs:
    """A method whose decode steps, one slot at a time, also fill StepInputs."""

    def __init__(self, method: KvMethod, inputs: StepInputs) -> None:
        self._method, self._inputs = method, inputs

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        batch, inputs = ops.batch, self._inputs

        def take() -> None:
            step = int(batch.positions[0]) - inputs.first
            for name in NAMES:
                buffer: Buffer = getattr(attention, name)
                inputs.arrays[name][layer, step] = buffer.data[0, : buffer.width]

        ops.call(take)
        self._method.decode(ops, layer, attention, out)

    def stats(self) -> Mapping[str, Any]:
        return self._method.stats()


class Replay:
    """A method's decode over recorded inputs, layer by layer, without a model around it."""

    def __init__(
        self, setting: KvSetting, method: KvMethod, slot: int, inputs: StepInputs, values: Change = unchanged
    ) -> None:
        backend, config = setting.backend, setting.config
        self._inputs, self._values = inputs, values
        self.recorder = backend.record(
            1,
            inv_freq=setting.inv_freq,
            rope_scale=setting.rope_scale,
            heads=(config.n_heads, config.n_kv_heads, config.head_dim),
        )
        self._layers = []
        for layer in range(config.n_layers):
            attention = input_buffers(setting, self.recorder)
            out = self.recorder.buffer(config.n_heads * config.head_dim)
            method.decode(self.recorder, layer, attention, out)
            self.recorder.next_part()
            self._layers.append((attention, out))
        self._step = backend.finish(self.recorder)
        self._step.batch.slots[0], self._step.batch.n_rows[0] = slot, 1

    def run(self, step: int, layer: int) -> np.ndarray:
        """One layer of one step; layers and steps come in order. Returns: the output [Hq * D]."""
        attention, out = self._layers[layer]
        position = self._inputs.first + step
        self._step.batch.positions[0] = position
        for name in NAMES:
            buffer: Buffer = getattr(attention, name)
            row = self._inputs.arrays[name][layer, step]
            buffer.data[0, : buffer.width] = self._values(row[None], position)[0] if name == "v" else row
        out.data[:] = np.nan
        self._step.run(layer)
        result: np.ndarray = out.data[0, : out.width].copy()
        return result
