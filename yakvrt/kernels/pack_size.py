"""How many tokens share one pass over the weights."""

from __future__ import annotations

DECODE_PACKS = (1, 2, 4, 8)  # one weight tile times these; memory sets the pace, so weights are prefetched
PREFILL_PACK = 6  # accumulators of two weight tiles times six tokens fill the 32 vector registers
MAX_DECODE_ROWS = 32


def pack_size(capacity: int) -> int:
    """The smallest pack that holds `capacity` rows, the largest for more, PREFILL_PACK for many."""
    if capacity > MAX_DECODE_ROWS:
        return PREFILL_PACK
    return next((pack for pack in DECODE_PACKS if capacity <= pack), DECODE_PACKS[-1])
