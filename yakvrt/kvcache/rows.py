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


def replace_missing(
    held: np.ndarray, wanted: np.ndarray, n_ids: int, keep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes `held`, the ids that rest in each head's places (-1: none), contain all wanted ids: those held
    already stay where they are, the others replace ids that are not wanted, those of least `keep` first.

    Shapes: held [H, places] (changed), wanted [H, k], k <= places, ids below n_ids, keep [H, places].
    Returns: head, place and id of every row to fetch [m].
    """
    n_heads, n_places = held.shape
    rows = np.arange(n_heads)[:, None]
    place_of = np.full((n_heads, n_ids + 1), -1, np.int32)  # the last column serves the empty places
    place_of[rows, held] = np.arange(n_places)
    place_of[:, n_ids] = -1
    places = place_of[rows, wanted]
    stays = np.zeros((n_heads, n_places + 1), bool)
    stays[rows, places] = True  # a missing id marks the last column
    order_by = np.zeros(held.shape, np.float32) if keep is None else keep.astype(np.float32)
    order_by = np.where(held < 0, np.float32(-np.inf), order_by)
    order_by = np.where(stays[:, :n_places], np.float32(np.inf), order_by)
    victims = np.argsort(order_by, axis=1, kind="stable")
    missing = places < 0
    head, column = np.nonzero(missing)
    rank = missing.cumsum(axis=1)[head, column] - 1
    place = victims[head, rank]
    ids = wanted[head, column]
    held[head, place] = ids
    return head, place, ids
