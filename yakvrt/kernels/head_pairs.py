"""Pieces of CUDA kernels whose threads each have a pair of numbers of a head, in a share of its rows."""

from __future__ import annotations

from typing import Any


def check_pairs(head_dim: int) -> None:
    """Raises: ValueError."""
    if head_dim % 2 or not 16 <= head_dim <= 256:
        raise ValueError(f"heads of {head_dim} numbers have no YAKV: use even ones from 16 to 256")


def make_sum_shares(g: Any, head_dim: int, threads: int) -> Any:
    """An inline sum_shares(held, pair, share, a, b): in the threads of share 0 the sums of a and of b over
    all shares. held: shared float32 [shares * D]; threads beyond the last whole share add nothing.
    """
    shares = threads // (head_dim // 2)

    @g.inline
    def sum_shares(held, pair, share, a, b):  # type: ignore[no-untyped-def]
        g.sync_threads()
        if share < shares:
            held[share * head_dim + 2 * pair], held[share * head_dim + 2 * pair + 1] = a, b
        g.sync_threads()
        if share == 0:
            for other in range(1, shares):
                a += held[other * head_dim + 2 * pair]
                b += held[other * head_dim + 2 * pair + 1]
        return a, b

    return sum_shares
