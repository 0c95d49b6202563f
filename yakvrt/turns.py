"""Whose turn it is: the calls of an engine's sessions come one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import Session


class Turns:
    """A lock for all sessions of one engine. A session that takes long over a file is held still, which keeps
    off those who want this one, and takes a turn for each piece.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._still: set[Session] = set()

    @contextmanager
    def take(self, *sessions: Session) -> Iterator[None]:
        """A turn, once none of the sessions is held still. A thread that has one may take another."""
        with self._changed:
            self._changed.wait_for(lambda: self._still.isdisjoint(sessions))
            yield

    @contextmanager
    def hold_still(self, session: Session) -> Iterator[None]:
        """Inside it is nobody's turn, but take(session) waits; take() does not."""
        with self.take(session):
            self._still.add(session)
        try:
            yield
        finally:
            with self._changed:
                self._still.remove(session)
                self._changed.notify_all()
