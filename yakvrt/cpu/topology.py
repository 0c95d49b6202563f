"""The CPUs this process may use: which share a core, which memory is near them, and how many are granted."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..control_group import control_group_directories

MAX_CPUS = 1 << 16

_sched_getcpu = getattr(ctypes.CDLL(None), "sched_getcpu", None)


@dataclass(frozen=True, slots=True)
class Cpu:
    """A logical CPU; `core` is the lowest logical CPU of its physical core, `node` its NUMA node."""

    number: int
    core: int
    node: int


@dataclass(frozen=True, slots=True)
class Topology:
    """The CPUs a process may use, one of every core before any of their siblings; () where unknown.

    `quota` is the number of CPUs the control groups grant, `here` the CPU the process was seen on.
    """

    cpus: tuple[Cpu, ...]
    quota: int | None = None
    here: int = 0

    def only(self, numbers: Iterable[int]) -> Topology:
        """These CPUs alone."""
        kept = set(numbers)
        return Topology(tuple(cpu for cpu in self.cpus if cpu.number in kept), self.quota, self.here)

    @property
    def n_cores(self) -> int:
        return len({cpu.core for cpu in self.cpus})

    @property
    def best_threads(self) -> int:
        """One a physical core, within the quota."""
        cores = self.n_cores or os.cpu_count() or 1
        return min(cores, self.quota or cores)

    @property
    def nodes(self) -> dict[int, list[Cpu]]:
        """The CPUs of every NUMA node."""
        nodes: dict[int, list[Cpu]] = {}
        for cpu in sorted(self.cpus, key=lambda cpu: cpu.node):
            nodes.setdefault(cpu.node, []).append(cpu)
        return nodes

    @property
    def most_threads(self) -> int:
        """Beyond this number threads only take turns on the CPUs."""
        cpus = len(self.cpus) or os.cpu_count() or 1
        return min(cpus, self.quota or cpus)


def machine_topology(
    sys_directory: Path = Path("/sys"), allowed: Iterable[int] | None = None, here: int | None = None
) -> Topology:
    """What Linux's /sys says of the CPUs in `allowed` (those the process may run on)."""
    if allowed is None:
        if not hasattr(os, "sched_getaffinity"):
            return Topology(())
        allowed = os.sched_getaffinity(0)
    node_of = _nodes(sys_directory / "devices/system/node")
    found = []
    for number in sorted(allowed):
        directory = sys_directory / f"devices/system/cpu/cpu{number}/topology"
        siblings = _cpu_list(directory / "thread_siblings_list")
        found.append(Cpu(number, min(siblings, default=number), node_of.get(number, 0)))
    first = {cpu.core: cpu for cpu in reversed(found)}
    found.sort(key=lambda cpu: first[cpu.core] is not cpu)
    return Topology(tuple(found), _cpu_quota(), current_cpu() if here is None else here)


def default_threads() -> int:
    """As many threads as run best on this machine."""
    return machine_topology().best_threads


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The numbers of a list such as "0-3,8". Raises: ValueError for anything else."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < MAX_CPUS:
            raise ValueError(f"{part!r} is no range of CPUs below {MAX_CPUS}; write first-last, as 0-3")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def _cpu_list(file: Path) -> tuple[int, ...]:
    try:
        return parse_cpu_list(file.read_text())
    except (OSError, ValueError):
        return ()


def _nodes(directory: Path) -> dict[int, int]:
    """The NUMA node of every CPU; {} where the system does not say."""
    nodes: dict[int, int] = {}
    for path in directory.glob("node*"):
        if path.name[4:].isdecimal():
            nodes.update(dict.fromkeys(_cpu_list(path / "cpulist"), int(path.name[4:])))
    return nodes


def current_cpu() -> int:
    """The CPU that the calling thread is on; 0 where the system does not say."""
    return int(_sched_getcpu()) if _sched_getcpu else 0


def _cpu_quota() -> int | None:
    """Whole CPUs the control groups grant, rounded up; None without a limit."""
    grants = []
    for directory in control_group_directories():
        try:
            quota, period = (directory / "cpu.max").read_text().split()
            grants.append(max(1, -(-int(quota) // int(period))))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(grants, default=None)
