"""Which idle slot a prompt gets, and how much of it is known already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .prefix_cache import PrefixCache, common_prefix

if TYPE_CHECKING:
    from .session import Session

# Copying pays where one token in so many is used: computing one takes much longer. Guesses, not measured.
WORTH = 16
LEAST_KEPT = 64  # tokens; fewer are not worth a place in the cache


def choose_slot(
    ids: Sequence[int], idle: Sequence[Session], busy: Sequence[Session], cache: PrefixCache
) -> Session:
    """One of the idle slots, longest idle first, which then holds the beginning of `ids`, less than all.

    A slot all of whose tokens begin the prompt, as an earlier turn of a conversation, goes on. Otherwise the
    longest idle one gets a copy of the longest beginning that any slot or the cache holds; what it held
    before goes to the cache.
    """
    limit = len(ids) - 1
    shared = {session: common_prefix(session.ids, ids, limit) for session in (*idle, *busy)}
    source = max(shared, key=lambda session: shared[session])
    n = shared[source]
    snapshot, n_cached = cache.find(ids, limit)
    if source in idle and len(source.ids) == n >= max(n_cached, 1):
        return source
    target = idle[0]
    kept = target.snapshot_bytes if len(target.ids) - shared[target] >= LEAST_KEPT else 0
    if kept and cache.has_room(kept):
        cache.keep(target.snapshot())
    if snapshot and n_cached > n and n_cached * WORTH >= len(snapshot.ids):
        target.load(snapshot, n_cached)
    elif target is not source and n > shared[target] and n * WORTH >= len(source.ids):
        target.copy_from(source, n)
    else:
        target.truncate(shared[target])
    return target
