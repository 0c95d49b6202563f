"""How many tokens share one pass over the weights."""

from __future__ import annotations

DECODE_PACKS = (1, 2, 4, 8)  # one weight tile times these; memory sets the pace, so weights are prefetched
PREFILL_PACK = 6  # accumulators of two weight tiles times six tokens fill the 32 vector registers
TILE_PACK = 16  # rows of a matrix register
MAX_DECODE_ROWS = 32


def pack_size(capacity: int, prefill_pack: int) -> int:
    """The smallest pack that holds `capacity` rows, the largest for more, prefill_pack for many."""
    if capacity > MAX_DECODE_ROWS:
        return prefill_pack
    return next((pack for pack in DECODE_PACKS if capacity <= pack), DECODE_PACKS[-1])
