"""Which cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from ..control_group import control_group_directories


def allowed_cores() -> list[int]:
    """One logical CPU per physical core the process may run on, at most as many as its CPU quota; [] where
    unknown.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    first_of_core: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            first_of_core.setdefault(siblings.read_text(), cpu)
        except OSError:
            first_of_core[str(cpu)] = cpu
    cores = sorted(first_of_core.values())
    quota = _cpu_quota()
    return cores[: max(1, quota)] if quota else cores


def _cpu_quota() -> int | None:
    """Whole CPUs the control groups grant, rounded up; None without a limit."""
    grants = []
    for directory in control_group_directories():
        try:
            quota, period = (directory / "cpu.max").read_text().split()
            grants.append(-(-int(quota) // int(period)))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(grants, default=None)


def default_threads() -> int:
    return len(allowed_cores()) or os.cpu_count() or 1
