"""A slot's first and last rows in a ring on the device, from the rows of all its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..backend import SlotRows


def fill_ring(ring: SlotRows, rows: SlotRows, n: int, n_sinks: int, ring_len: int) -> None:
    """With those of the first n tokens: n_sinks at their positions, behind them the last ring_len in turn
    (kv_append_cuda).
    """
    ring.write(0, *rows.read(0, min(n_sinks, n)))
    first = max(n_sinks, n - ring_len)
    turn = first + -(first - n_sinks) % ring_len  # whose place is the first behind the first ones
    for begin, end in ((first, min(turn, n)), (turn, n)):
        if begin < end:
            ring.write(n_sinks + (begin - n_sinks) % ring_len, *rows.read(begin, end))
