"""Which part of YAKV's tail counts, told for every query head by the prompt's last tokens.

They are taken in as decoding would, which gives what is read and the tail apart; their exact outputs are at
hand, since a prompt's attention is exact. The part that brings a head nearest to these is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.yakv_fit import STEPS, best_parts
from ..ops import Buffer, KvRows, Ops
from .contract import AttentionInput, KvSetting

if TYPE_CHECKING:
    from ..backend import Recording, Step

FIT_TOKENS = 24


class TailFit:
    """One layer of one prompt at a time, whose exact rows are in `staging`.

    Bytes: those of a decode step's scratch, and 4 * D * (4 Hq + 2 Hk) * FIT_TOKENS.
    """

    def __init__(self, setting: KvSetting, staging: KvRows, layers: Sequence[Any]) -> None:
        self._setting, self._staging, self._layers = setting, staging, layers
        config, backend = setting.config, setting.backend
        widths = [heads * config.head_dim for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads)]
        self._last = [backend.buffer(FIT_TOKENS, width) for width in widths]  # q, k, v
        self._errors = backend.buffer(config.n_heads, STEPS + 1)
        self._steps: tuple[Step, Step] | None = None

    def keep(self, ops: Ops, attention: AttentionInput) -> None:
        """Records: keep the last tokens of a chunk."""
        ops.keep_rows(self._last, (attention.q, attention.k, attention.v))

    def take_in(self, layer: int, slot: int, first: int) -> np.ndarray:
        """Takes the tokens kept, at positions `first` and on, into a slot that holds those before, all of
        whose tail counts.

        Returns: the best part for every query head, float32 [Hq].
        """
        if self._steps is None:
            self._steps = self._record_exact(), self._record_decode()
        (exact, decode), backend = self._steps, self._setting.backend
        positions = np.arange(first, first + FIT_TOKENS)
        last = [backend.read(kept, 0, FIT_TOKENS)[positions % FIT_TOKENS] for kept in self._last]
        exact.batch.n_rows[0] = FIT_TOKENS
        exact.batch.positions[:] = positions
        backend.write(self._q, last[0])
        exact.run()
        last.append(backend.read(self._exact, 0, FIT_TOKENS).copy())
        backend.write(self._errors, np.zeros((self._errors.data.shape[0], STEPS + 1), np.float32))
        decode.batch.n_rows[0], decode.batch.slots[0] = 1, slot
        for i, position in enumerate(positions):
            decode.batch.positions[0] = position
            for buffer, rows in zip(self._token, last, strict=True):
                backend.write(buffer, rows[i : i + 1])
            decode.run(layer)
        return best_parts(backend.read(self._errors, 0, self._errors.data.shape[0]))

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
        recorder, width = self._recorder(FIT_TOKENS), self._last[0].width
        self._q, self._exact = recorder.buffer(width), recorder.buffer(width)
        recorder.attend_prefill(self._exact, self._q, self._staging)
        return self._setting.backend.finish(recorder)

    def _record_decode(self) -> Step:
        """One of them; a part for every layer."""
        recorder = self._recorder(1)
        q, k, v = (recorder.buffer(kept.width) for kept in self._last)
        exact: Buffer = recorder.buffer(q.width)
        self._token = q, k, v, exact
        for i, rows in enumerate(self._layers):
            if i:
                recorder.next_part()
            recorder.yakv_tail_errors(self._errors, exact, q, k, v, rows)
        return self._setting.backend.finish(recorder)
