"""Which part of YAKV's tail counts, told for every query head by the prompt's last tokens.

They are taken in as decoding would, which gives what is read and the tail apart; their exact outputs are at
hand, since a prompt's attention is exact. The part that brings a head nearest to these is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.yakv_fit import STEPS
from ..ops import Buffer, KvRows, Ops
from .contract import AttentionInput, KvSetting

if TYPE_CHECKING:
    from ..backend import Recording, Step

FIT_TOKENS = 24


class TailFit:
    """One layer of one prompt at a time, whose exact rows are in `staging`, layers in turn. `errors` are
    those of the layer taken in last, for every query head and part (yakv_fit.py).

    Bytes: those of a decode step's scratch, and up to 4 * D * (6 Hq + 4 Hk) * FIT_TOKENS.
    """

    def __init__(self, setting: KvSetting, staging: Sequence[KvRows], layers: Sequence[Any]) -> None:
        self._setting, self._staging, self._layers = setting, staging, layers
        config, backend = setting.config, setting.backend
        widths = [heads * config.head_dim for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads)]
        # q, k, v of every layer under way
        self._last = [[backend.buffer(FIT_TOKENS, width) for width in widths] for _ in staging]
        self.errors = backend.buffer(config.n_heads, STEPS + 1)
        self._steps: tuple[Step, Step] | None = None

    def keep(self, ops: Ops, layer: int, attention: AttentionInput) -> None:
        """Records: keep the last tokens of a chunk."""
        ops.keep_rows(self._last[layer % len(self._last)], (attention.q, attention.k, attention.v))

    def take_in(self, layer: int, slot: int, first: int) -> None:
        """Takes the tokens kept, at positions `first` and on, into a slot that holds those before, all of
        whose tail counts. Waits for nothing that is asked of a device.
        """
        if self._steps is None:
            self._steps = self._record_exact(), self._record_decode()
        (exact, decode), backend = self._steps, self._setting.backend
        positions, last = np.arange(first, first + FIT_TOKENS), self._last[layer % len(self._last)]
        exact.batch.n_rows[0] = FIT_TOKENS
        exact.batch.positions[:] = positions
        at = first % FIT_TOKENS  # where the first one is kept
        backend.copy(self._q, 0, last[0], at, FIT_TOKENS - at)
        backend.copy(self._q, FIT_TOKENS - at, last[0], 0, at)
        exact.run(layer % len(self._staging))
        backend.clear(self.errors)
        decode.batch.n_rows[0], decode.batch.slots[0] = 1, slot
        for i, position in enumerate(positions):
            decode.batch.positions[0] = position
            rows = [(kept, int(position) % FIT_TOKENS) for kept in last]
            for buffer, (kept, row) in zip(self._token, [*rows, (self._exact, i)], strict=True):
                backend.copy(buffer, 0, kept, row, 1)
            decode.run(layer)

    def _recorder(self, capacity: int) -> Recording:
        setting, config = self._setting, self._setting.config
        return setting.backend.record(
            capacity,
            inv_freq=setting.inv_freq,
            rope_scale=setting.rope_scale,
            heads=(config.n_heads, config.n_kv_heads, config.head_dim),
        )

    def _record_exact(self) -> Step:
        """Exact attention of the tokens kept; a part for every layer under way."""
        recorder, width = self._recorder(FIT_TOKENS), self._last[0][0].width
        self._q, self._exact = recorder.buffer(width), recorder.buffer(width)
        for i, rows in enumerate(self._staging):
            if i:
                recorder.next_part()
            recorder.attend_prefill(self._exact, self._q, rows)
        return self._setting.backend.finish(recorder)

    def _record_decode(self) -> Step:
        """One of them; a part for every layer."""
        recorder = self._recorder(1)
        q, k, v = (recorder.buffer(kept.width) for kept in self._last[0])
        exact: Buffer = recorder.buffer(q.width)
        self._token = q, k, v, exact
        for i, rows in enumerate(self._layers):
            if i:
                recorder.next_part()
            recorder.yakv_tail_errors(self.errors, exact, q, k, v, rows)
        return self._setting.backend.finish(recorder)
