"""Tells whether the machine was quiet while something was timed: a sample beside other work says little."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

MAX_OTHER_CPUS = 0.15
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """CPU seconds that anything on this machine used since it started, the hypervisor's share included."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND


@dataclass(slots=True)
class Meter:
    """Context manager: wall seconds of its block, and the CPUs that others kept busy meanwhile.

    Units: /proc/stat counts in 10 ms, so a block should last 0.1 s or more.
    """

    wall_s: float = 0.0
    own_cpus: float = 0.0
    other_cpus: float = 0.0
    _began: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __enter__(self) -> Meter:
        self._began = busy_seconds(), time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = busy_seconds(), time.process_time(), time.perf_counter()
        busy_s, own_s, self.wall_s = (end - begin for end, begin in zip(ended, self._began, strict=True))
        self.own_cpus = own_s / self.wall_s
        self.other_cpus = max(0.0, busy_s - own_s) / self.wall_s

    @property
    def quiet(self) -> bool:
        """Whether others used so little that the sample counts."""
        return self.other_cpus <= MAX_OTHER_CPUS


def settle(max_wait_s: float = 2.0, window_s: float = 0.05) -> None:
    """Waits until this process is idle: threads that still spin for one side would slow the other."""
    deadline = time.perf_counter() + max_wait_s
    while time.perf_counter() < deadline:
        began = time.process_time()
        time.sleep(window_s)
        if time.process_time() - began < 0.05 * window_s:
            return


def wait_for_quiet(max_wait_s: float = 60.0, window_s: float = 0.3) -> bool:
    """Waits until others leave the machine alone; False when they did not in time."""
    deadline = time.perf_counter() + max_wait_s
    while time.perf_counter() < deadline:
        with Meter() as meter:
            time.sleep(window_s)
        if meter.quiet:
            return True
    return False
