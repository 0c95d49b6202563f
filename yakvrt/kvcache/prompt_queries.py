"""The roped queries of one layer of a prompt, kept until the layer's rows are stored."""

from __future__ import annotations

import numpy as np

from ..cpu.memory import reserved
from ..ops import Ops
from .contract import AttentionInput, KvSetting


class PromptQueries:
    """By position, float32; one layer of one prompt at a time. Bytes: 4 * Hq * D per token of the context."""

    def __init__(self, setting: KvSetting) -> None:
        config = setting.config
        self._shape = config.n_heads, config.head_dim
        width = config.n_heads * config.head_dim
        self._rows = reserved((setting.ctx_size, 4 * width)).view(np.float32)

    def record(self, ops: Ops, attention: AttentionInput) -> None:
        """Records: keep the queries of a chunk."""
        batch, q = ops.batch, attention.q

        def run() -> None:
            n, first = int(batch.n_rows[0]), int(batch.positions[0])
            self._rows[first : first + n] = ops.read(q, n)

        ops.call(run)

    def read(self, first: int, last: int) -> np.ndarray:
        """Shapes: float32 [Hq, n, D]."""
        heads, dim = self._shape
        return self._rows[first:last].reshape(last - first, heads, dim).swapaxes(0, 1)
