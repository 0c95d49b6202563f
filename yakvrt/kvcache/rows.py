"""Steps that methods share, as functions over arrays.

H stands for KV heads, G for the query heads of each, n for rows, D for the size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..ops import Buffer, Ops
from .contract import AttentionInput

if TYPE_CHECKING:
    from ..config import ModelConfig

# (slot, position, q [H, G, D], k [H, D], v [H, D], further queries [H, G, D]) -> attention output, q's size
Attend = Callable[..., np.ndarray]


def attend_each(
    ops: Ops, config: ModelConfig, attention: AttentionInput, out: Buffer, attend: Attend, *queries: Buffer
) -> None:
    """Records: `attend` for every row of the batch."""
    heads, group, dim = config.n_kv_heads, config.n_heads // config.n_kv_heads, config.head_dim
    batch = ops.batch

    def run() -> None:
        n = int(batch.n_rows[0])
        asked = [ops.read(each, n).reshape(n, heads, group, dim) for each in (attention.q, *queries)]
        k, v = (ops.read(each, n).reshape(n, heads, dim) for each in (attention.k, attention.v))
        found = np.empty((n, heads * group * dim), np.float32)
        for row in range(n):
            q, *further = (each[row] for each in asked)
            slot, position = int(batch.slots[row]), int(batch.positions[row])
            found[row] = attend(slot, position, q, k[row], v[row], *further).reshape(-1)
        ops.write(out, found)

    ops.call(run)
