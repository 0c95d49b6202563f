"""Which idle slot a prompt gets, and how much of it some slot knows already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import Session

RUN = 256
WORTH = (
    16  # copying a slot pays where one token in so many is used: computing one takes hundreds of times longer
)


def choose_slot(ids: Sequence[int], idle: Sequence[Session], busy: Sequence[Session]) -> Session:
    """One of the idle slots, longest idle first, which then holds the beginning of `ids`, less than all.

    A slot all of whose tokens begin the prompt, as an earlier turn of a conversation, goes on. Otherwise the
    longest idle one gets a copy of the longest beginning that any slot holds.
    """
    shared = {session: common_prefix(session.ids, ids, len(ids) - 1) for session in (*idle, *busy)}
    source = max(shared, key=lambda session: shared[session])
    n = shared[source]
    target = source if source in idle and n == len(source.ids) > 0 else idle[0]
    if target is source or n == 0 or n * WORTH < len(source.ids):
        target.truncate(shared[target])
    else:
        target.copy_from(source, n)
    return target


def common_prefix(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    """How many tokens at the beginning are the same, at most `limit`."""
    n, end = 0, min(len(a), len(b), limit)
    while n + RUN <= end and a[n : n + RUN] == b[n : n + RUN]:
        n += RUN
    while n < end and a[n] == b[n]:
        n += 1
    return n
