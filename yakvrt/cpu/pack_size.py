"""How many tokens share one pass over the weights."""

from __future__ import annotations

PACK = 6  # accumulators of two weight tiles times six tokens fill the 32 vector registers


def pack_size(capacity: int) -> int:
    """1 for the step of a single sequence, PACK for all others."""
    return 1 if capacity == 1 else PACK
