"""Requests that have no slot yet, in the order in which they get one."""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .scheduler_state import OverloadedError

if TYPE_CHECKING:
    from .request import EndReason, Request


class WaitingLine:
    """A lower priority number comes first, then who came first; at most max_waiting. Not thread-safe."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._arrivals = itertools.count()
        self._entries: list[tuple[int, int, Request]] = []  # in their order

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, _, request in self._entries)

    def add(self, request: Request, priority: int) -> None:
        """Raises: OverloadedError when as many wait as may."""
        if len(self._entries) >= self._max_waiting:
            raise OverloadedError(f"{self._max_waiting} requests are waiting already; try again later")
        insort(self._entries, (priority, next(self._arrivals), request))

    def remove(self, request: Request) -> None:
        """Wherever it stands."""
        self._entries = [entry for entry in self._entries if entry[2] is not request]

    def take_ended(self, now: float) -> list[tuple[Request, EndReason]]:
        """Removes those that were aborted or are out of time. Returns: them, and why."""
        ended = [(request, reason) for request in self if (reason := request.early_end(now))]
        for request, _ in ended:
            self.remove(request)
        return ended

    def take_all(self) -> list[Request]:
        """Removes all."""
        requests = list(self)
        self._entries.clear()
        return requests
