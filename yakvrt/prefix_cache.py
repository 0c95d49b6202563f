"""What slots held before others needed them: kept in memory, found by how the tokens begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import Snapshot

RUN = 256


class PrefixCache:
    """Snapshots of sessions of one engine, at most max_bytes of them; the one unused for longest goes first.

    A look-up compares with every entry: each costs microseconds unless it begins alike, and there are
    hundreds at most. Not thread-safe.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: list[Snapshot] = []  # unused for longest first

    @property
    def n_bytes(self) -> int:
        return sum(entry.n_bytes for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def has_room(self, n_bytes: int) -> bool:
        """Whether a snapshot of n_bytes could be kept, in place of all others."""
        return n_bytes <= self._max_bytes

    def keep(self, snapshot: Snapshot) -> None:
        """Adds one; those that it continues, and the oldest ones if there is no room, go."""
        n = len(snapshot.ids)
        self._entries = [
            entry for entry in self._entries if common_prefix(entry.ids, snapshot.ids, n) < len(entry.ids)
        ]
        self._entries.append(snapshot)
        while self.n_bytes > self._max_bytes:
            del self._entries[0]

    def find(self, ids: Sequence[int], limit: int) -> tuple[Snapshot | None, int]:
        """The one that begins most like ids, and how many tokens are the same, at most limit."""
        found, n = None, 0
        for entry in self._entries:
            if (shared := common_prefix(entry.ids, ids, limit)) > n:
                found, n = entry, shared
        if found:
            self._entries.remove(found)
            self._entries.append(found)
        return found, n


def common_prefix(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    """How many tokens at the beginning are the same, at most `limit`."""
    n, end = 0, min(len(a), len(b), limit)
    while n + RUN <= end and a[n : n + RUN] == b[n : n + RUN]:
        n += RUN
    while n < end and a[n] == b[n]:
        n += 1
    return n
