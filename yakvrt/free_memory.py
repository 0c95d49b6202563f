"""The host memory that this process may still take."""

from __future__ import annotations

import os
from pathlib import Path

from .control_group import control_group_directories


def available_memory() -> int:
    """Bytes this process may take: the machine's free memory within the limits of its control groups."""
    free = _machine_free()
    for directory in control_group_directories():
        try:
            limit, used = (
                (directory / name).read_text().strip() for name in ("memory.max", "memory.current")
            )
        except OSError:
            continue
        if limit != "max":
            free = min(free, max(0, int(limit) - int(used) + _reclaimable(directory)))
    return free


def _machine_free() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _reclaimable(directory: Path) -> int:
    """File pages the group holds, which the system drops when memory is asked for."""
    try:
        for line in (directory / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
