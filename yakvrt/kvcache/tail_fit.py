"""Which part of YAKV's tail counts, told for every query head by the prompt's last tokens.

They are taken in as decoding would, which gives what is read and the tail apart; their exact outputs are at
hand, since a prompt's attention is exact. The part that brings a head nearest to these is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.yakv_fit import STEPS, best_parts
from ..ops import Buffer, KvRows, Ops, YakvRows
from .contract import AttentionInput, KvSetting

if TYPE_CHECKING:
    from ..backend import Recording, Step

FIT_TOKENS = 24


class TailFit:
    """One layer of one prompt at a time, whose exact rows are in `staging`.

    Bytes: those of a decode step's scratch, and 4 * D * (4 Hq + 2 Hk) * FIT_TOKENS.
    """

    def __init__(self, setting: KvSetting, staging: KvRows, layers: Sequence[YakvRows]) -> None:
        self._setting, self._staging, self._layers = setting, staging, layers
        config = setting.config
        widths = [heads * config.head_dim for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads)]
        self._last = [np.zeros((FIT_TOKENS, width), np.float32) for width in widths]  # q, k, v
        self._errors = np.zeros((config.n_heads, STEPS + 1), np.float32)
        self._steps: tuple[Step, Step] | None = None

    def keep(self, ops: Ops, attention: AttentionInput) -> None:
        """Records: keep the last tokens of a chunk."""
        batch, sources = ops.batch, (attention.q, attention.k, attention.v)

        def run() -> None:
            n = min(int(batch.n_rows[0]), FIT_TOKENS)
            first = int(batch.n_rows[0]) - n
            for kept, source in zip(self._last, sources, strict=True):
                kept[: FIT_TOKENS - n] = kept[n:]
                kept[FIT_TOKENS - n :] = source.data[first : first + n, : source.width]

        ops.call(run)

    def take_in(self, layer: int, slot: int, first: int) -> np.ndarray:
        """Takes the tokens kept, at positions `first` and on, into a slot that holds those before, all of
        whose tail counts.

        Returns: the best part for every query head, float32 [Hq].
        """
        if self._steps is None:
            self._steps = self._record_exact(), self._record_decode()
        exact, decode = self._steps
        exact.batch.n_rows[0] = FIT_TOKENS
        exact.batch.positions[:] = np.arange(first, first + FIT_TOKENS)
        self._q.data[:FIT_TOKENS, : self._q.width] = self._last[0]
        exact.run()
        self._errors[:] = 0
        decode.batch.n_rows[0], decode.batch.slots[0] = 1, slot
        for i in range(FIT_TOKENS):
            decode.batch.positions[0] = first + i
            self._token[0].data[0, : self._token[0].width] = self._exact.data[i, : self._exact.width]
            for buffer, rows in zip(self._token[1:], self._last, strict=True):
                buffer.data[0, : buffer.width] = rows[i]
            decode.run(layer)
        return best_parts(self._errors)

    def _recorder(self, capacity: int) -> Recording:
        setting, config = self._setting, self._setting.config
        return setting.backend.record(
            capacity,
            inv_freq=setting.inv_freq,
            rope_scale=setting.rope_scale,
            heads=(config.n_heads, config.n_kv_heads, config.head_dim),
        )

    def _record_exact(self) -> Step:
        """Exact attention of the tokens kept."""
        recorder, width = self._recorder(FIT_TOKENS), self._last[0].shape[1]
        self._q, self._exact = recorder.buffer(width), recorder.buffer(width)
        recorder.attend_prefill(self._exact, self._q, self._staging)
        return self._setting.backend.finish(recorder)

    def _record_decode(self) -> Step:
        """One of them; a part for every layer."""
        recorder = self._recorder(1)
        q, k, v = (recorder.buffer(rows.shape[1]) for rows in self._last)
        exact: Buffer = recorder.buffer(q.width)
        self._token = exact, q, k, v
        for i, rows in enumerate(self._layers):
            if i:
                recorder.next_part()
            recorder.yakv_tail_errors(self._errors, exact, q, k, v, rows)
        return self._setting.backend.finish(recorder)
