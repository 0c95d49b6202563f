"""What a record of a memory benchmark says about the machine."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from yakvrt.bench_facts import cpu_info

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Names and sizes; 0 or "" where the system does not say.

    `n_cpus` are those the process may use, `llc_bytes` is the last cache of one of them, `huge_pages` the
    system's setting for transparent ones (always, madvise or never).
    """

    cpu_info: str
    n_cpus: int
    n_numa_nodes: int
    llc_bytes: int
    memory_bytes: int
    huge_pages: str
    system: str


def machine_facts() -> MachineFacts:
    """Those of this machine."""
    from yakvrt.cpu.topology import machine_topology

    topology = machine_topology()
    return MachineFacts(
        cpu_info=cpu_info(),
        n_cpus=topology.most_threads,
        n_numa_nodes=len(topology.nodes),
        llc_bytes=_last_cache_bytes(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        huge_pages=_huge_page_setting(),
        system=f"{platform.system()} {platform.release()}",
    )


def _last_cache_bytes() -> int:
    sizes = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, size = int((index / "level").read_text()), (index / "size").read_text().strip()
            sizes[level] = int(size[:-1]) * UNITS[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return sizes[max(sizes)] if sizes else 0


def _huge_page_setting() -> str:
    try:
        words = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().split()
    except OSError:
        return ""
    return next((word.strip("[]") for word in words if word.startswith("[")), "")
