"""Which threads take part in the next step: those whose cores are not taken by something else."""

from __future__ import annotations

import numpy as np

WINDOW_NS = 32_000_000  # of steps, between two decisions: some turns of the system's scheduler
REST_NS = 400_000_000  # before threads that rest are tried again
CROWDED = 1 / 3  # the part of a window in which a thread did not run though it had work


class Attendance:
    """Who attends, from how long each thread was in steps and how long it really ran.

    `active` lists them by the places they have on the machine.

    A step whose work is shared out evenly is as fast as its slowest thread, and one that has half a core
    halves them all. Without it the others are slower by its part of the work at most, and where memory is the
    limit by less: so it rests, and is tried again from time to time. Where few cores are free all stay, since
    half of every core is more. Where none is, threads that hardly ever run at the same time wait for each
    other most of all: the more crowded half rests, down to one thread, which waits for nobody.
    """

    def __init__(self, n_threads: int) -> None:
        self.active = np.arange(n_threads)
        self._began = np.zeros((2, n_threads), np.int64)
        self._rest_until_ns = 0

    def is_due(self, wall_ns: int, now_ns: int) -> bool:
        """Whether update() would decide anything. wall_ns: of thread 0."""
        if len(self.active) < self._began.shape[1] and now_ns >= self._rest_until_ns:
            return True
        return wall_ns - int(self._began[0, 0]) >= WINDOW_NS

    def update(self, wall_ns: np.ndarray, own_ns: np.ndarray, now_ns: int) -> None:
        """Decides anew, from the threads' times since they began; thread 0 stands for the first in `active`.

        Shapes: int64 [threads] each.
        """
        n_threads = len(wall_ns)
        spent_wall, spent_own = wall_ns - self._began[0], own_ns - self._began[1]
        self._began[:] = wall_ns, own_ns
        if len(self.active) < n_threads and now_ns >= self._rest_until_ns:
            self.active = np.arange(n_threads)
            return
        threads = [0, *self.active[1:]]
        missing = 1 - spent_own[threads] / np.maximum(spent_wall[threads], 1)
        stay = self.active[missing < CROWDED]
        if len(stay) == 0:
            stay = self.active[np.sort(np.argsort(missing)[: (len(self.active) + 1) // 2])]
        # four fifths: less work for each thread is rarely less speed in proportion
        elif len(stay) / len(self.active) < 0.8 * (1 - missing.max()):
            return
        if len(stay) < len(self.active):
            self.active = stay
            self._rest_until_ns = now_ns + REST_NS
