"""Which idle slot a prompt gets, and how much of it is known already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .prefix_cache import PrefixCache
from .radix_tree import common_prefix

if TYPE_CHECKING:
    from .session import Session

# Fewer tokens are not worth a place in the cache, nor a copy of what a method knows of many more: a guess.
LEAST_KEPT = 64


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
    known = cache.find(ids, limit)  # which counts as used, so it goes last
    if source in idle and len(source.ids) == n >= (max(len(known.ids), 1) if known else 1):
        return source
    target = idle[0]
    if len(target.ids) - shared[target] >= LEAST_KEPT:
        known = None  # or memory that the cache gives back would stay
        target.keep_in(cache)
        known = cache.find(ids, limit)
    if known and len(known.ids) > n and _is_worth_it(len(known.ids), known.n_held):
        target.load(known)
    elif target is not source and n > shared[target] and _is_worth_it(n, len(source.ids)):
        target.copy_from(source, n)
    else:
        target.truncate(shared[target])
    return target


def _is_worth_it(n: int, n_held: int) -> bool:
    """Whether to copy the first n of n_held tokens: their rows, and all that is not divided among tokens."""
    return n >= min(LEAST_KEPT, n_held // 16)
