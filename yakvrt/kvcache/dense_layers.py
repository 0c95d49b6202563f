"""The first layers of a model, where some methods read everything."""

from __future__ import annotations

from ..ops import ELEMENT_BYTES, Buffer, KvRows, Ops
from .contract import AttentionInput, KvSetting, StateArray
from .counters import Counters
from .slot_state import exact_state


class DenseLayers:
    """Full attention in layers 0 to n - 1. With `on_host` their rows are counted as fetched in every step."""

    def __init__(self, setting: KvSetting, n: int, counters: Counters, *, on_host: bool) -> None:
        config = setting.config
        self.n = min(n, config.n_layers)
        self._setting, self._counters, self._on_host = setting, counters, on_host
        self._row_bytes = 2 * config.head_dim * ELEMENT_BYTES[setting.kind]
        self._layers: list[KvRows] = []
        if self.n:
            self._layers = setting.backend.kv_rows(
                self.n,
                setting.n_slots,
                config.n_kv_heads,
                setting.ctx_size,
                config.head_dim,
                setting.kind,
            )

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        ops.kv_append(self._layers[layer], attention.k, attention.v)
        return self._layers[layer]

    def state(self, slot: int, n_held: int) -> dict[str, StateArray]:
        return exact_state(self._setting, self._layers, slot, n_held)

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        ops.attend_decode(out, attention.q, attention.k, attention.v, self._layers[layer])

    def count(self, ops: Ops, layer: int) -> None:
        """Records: what a layer reads is counted, of models that are dense in all layers."""
        batch, heads = ops.batch, self._setting.config.n_kv_heads

        def run() -> None:
            for position in batch.positions[: int(batch.n_rows[0])]:
                asked = heads * int(position) if self._on_host else 0
                read = heads * (int(position) + 1)
                self._counters.add(layer, read=read, asked=asked, hit=0, row_bytes=self._row_bytes)

        ops.call(run)
