"""What slots consist of, for methods of any kind: exact rows in tiles, and copies of slots."""

from __future__ import annotations

from collections.abc import Sequence

from ..ops import KvRows
from .contract import KvMethod, StateArray
from .staging import TILE, row_views


def tiled_state(
    layers: Sequence[KvRows], slot: int, n_kv_heads: int, head_dim: int, n_held: int
) -> dict[str, StateArray]:
    """The exact rows of a slot by layer: whole tiles of keys, and values."""
    found = {}
    for layer, rows in enumerate(layers):
        k, v = row_views(rows, slot, n_kv_heads, head_dim)
        found[f"k.{layer}"] = StateArray(k[:, : -(-n_held // TILE)])
        found[f"v.{layer}"] = StateArray(v[:, :n_held])
    return found


def copy_slot(kv: KvMethod, source: int, n_held: int, target: int, n: int) -> int:
    """Makes an empty slot what the source, a slot of n_held tokens, would be after truncate() to n.

    Returns: how many tokens the target holds, at most n.
    """
    state = kv.state(target, n_held)
    for name, part in kv.state(source, n_held).items():
        state[name].values[...] = part.values
    return n if n == n_held else kv.truncate(target, n_held, n)
