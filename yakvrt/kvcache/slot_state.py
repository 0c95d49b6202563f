"""What slots consist of, for methods of any kind: exact rows, and copies of slots."""

from __future__ import annotations

from collections.abc import Sequence

from ..ops import KvRows
from .contract import KvMethod, KvSetting, StateArray, TokenRows
from .state_blocks import along


def exact_state(
    setting: KvSetting, layers: Sequence[KvRows], slot: int, n_held: int
) -> dict[str, StateArray]:
    """The exact rows of a slot by layer, keys and values."""
    found, config = {}, setting.config
    for layer, rows in enumerate(layers):
        held = setting.backend.slot_rows(rows, slot, config.n_kv_heads, config.head_dim)
        k, v = held.state(n_held)
        found[f"k.{layer}"] = StateArray(k, rows=TokenRows(1, held.key_tile))
        found[f"v.{layer}"] = StateArray(v, rows=TokenRows(1))
    return found


def copy_slot(kv: KvMethod, source: int, n_held: int, target: int, n: int) -> int:
    """Makes an empty slot what the source, a slot of n_held tokens, would be after truncate() to n.

    Returns: how many tokens the target holds, at most n.
    """
    state = kv.state(target, n_held)
    for name, part in kv.state(source, n_held).items():
        if part.rows is None:
            state[name].values[...] = part.values
        else:
            belonging = along(part.rows.axis, 0, part.rows.reaching(n))
            state[name].values[belonging][...] = part.values[belonging]
    return n if n == n_held else kv.truncate(target, n_held, n)
