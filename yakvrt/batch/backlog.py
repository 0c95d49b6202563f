"""Requests for workers that may be lost: which comes next, and which have lost too many workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from yakvrt.batch.requests import BatchRequest

MAX_LOSSES = 3


@dataclass(slots=True, eq=False)
class Task:
    """A request, and how many workers were lost while they had it."""

    request: BatchRequest
    n_losses: int = 0

    @property
    def must_be_alone(self) -> bool:
        """Before it is given up, so that it is known to be this one that takes workers away."""
        return self.n_losses == MAX_LOSSES - 1


class Backlog:
    """Requests are taken from `requests` only when somebody asks for one."""

    def __init__(self, requests: Iterator[BatchRequest]) -> None:
        self._requests = requests
        self._again: deque[Task] = deque()
        self._suspects: deque[Task] = deque()
        self._is_read = False

    @property
    def is_empty(self) -> bool:
        """Whether take() has given all away and nothing has come back."""
        return self._is_read and not self._again and not self._suspects

    def take(self, n_held: int) -> Task | None:
        """For a worker that holds n_held tasks, none of which must be alone; None for nothing now."""
        if self._again:
            return self._again.popleft()
        if not self._is_read:
            for request in self._requests:
                return Task(request)
            self._is_read = True
        return self._suspects.popleft() if self._suspects and not n_held else None

    def lost(self, task: Task) -> bool:
        """The worker that had it is lost. Returns: whether the task comes again; else it is given up."""
        task.n_losses += 1
        if task.n_losses >= MAX_LOSSES:
            return False
        (self._suspects if task.must_be_alone else self._again).append(task)
        return True
