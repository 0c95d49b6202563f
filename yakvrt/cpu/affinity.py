"""Which CPUs each thread of a team runs on: what the flags ask for, applied to a machine's topology."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..kernels.team import MAX_THREADS
from .topology import Cpu, Topology

NUMA = ("distribute", "isolate", "numactl")

Places = tuple[frozenset[int], ...]  # of each thread: the CPUs it is bound to; none leaves it to the system


@dataclass(frozen=True, slots=True)
class Affinity:
    """What is asked for; the default takes what the process may use.

    cpus: use these alone (--cpu-mask, --cpu-range). strict: a CPU of its own for every thread (--cpu-strict).
    numa (--numa), for machines with several memories:
        distribute  the same number of threads on every node, each bound to its node
        isolate     only the node the process was started on
        numactl     the CPUs and the memory policy that numactl set: what happens without the flag, too
    Memory follows the threads by itself: a page belongs to the node of the thread that writes it first, and
    weights are written into place by the thread that multiplies by them at decode.
    """

    cpus: tuple[int, ...] = ()
    strict: bool = False
    numa: str = ""


def usable(affinity: Affinity, topology: Topology) -> Topology:
    """The part of the machine that may be used.

    Raises: ValueError when a CPU is asked for that the process may not use, or none is left.
    """
    if affinity.numa not in ("", *NUMA):
        raise ValueError(f"--numa {affinity.numa!r} is not known; choose one of {', '.join(NUMA)}")
    held = sorted(cpu.number for cpu in topology.cpus)
    if not held and affinity != Affinity():
        raise ValueError(
            "this system does not bind threads to CPUs; leave --cpu-mask, --cpu-strict and --numa out"
        )
    if affinity.cpus:
        if missing := sorted(set(affinity.cpus) - set(held)):
            raise ValueError(
                f"CPU {missing[0]} is in --cpu-mask or --cpu-range, and this process may use "
                f"{_ranges(held)}; name some of these"
            )
        topology = topology.only(affinity.cpus)
    if affinity.numa == "isolate" and topology.cpus:
        node = next(
            (n for n, cpus in topology.nodes.items() for c in cpus if c.number == topology.here), None
        )
        if node is None:
            raise ValueError(
                f"--numa isolate: the process runs on CPU {topology.here}, which --cpu-mask leaves out; "
                "name CPUs of its node, or leave --numa out"
            )
        topology = topology.only(cpu.number for cpu in topology.nodes[node])
    return topology


def team_size(n_threads: int | None, affinity: Affinity, topology: Topology) -> int:
    """The threads that run where n_threads are asked for, on what usable() gave: no more than it has CPUs,
    or they would wait for each other's turn; None: one a core.
    """
    if n_threads is None:
        n_threads = min(topology.best_threads, MAX_THREADS)
    return n_threads if affinity.strict else min(n_threads, topology.most_threads)


def place_threads(affinity: Affinity, topology: Topology, n_threads: int) -> Places:
    """The CPUs of every thread, on a topology that usable() gave.

    Each is bound to one CPU where the team has every core or --cpu-strict is set: unpinned threads that were
    woken often share a core. A smaller team is left to the system within what was asked for, or two of them
    would sit on the same cores.
    Raises: ValueError for more threads than CPUs under --cpu-strict.
    """
    cpus = topology.cpus
    if affinity.strict and n_threads > len(cpus):
        raise ValueError(
            f"--cpu-strict 1 gives every thread a CPU of its own, and {n_threads} threads have {len(cpus)}; "
            f"lower --threads to {len(cpus)}"
        )
    nodes = topology.nodes
    if affinity.numa == "distribute" and len(nodes) > 1:
        # neighbouring threads on one node, as they read neighbouring rows
        share_of = [t * len(nodes) // n_threads for t in range(n_threads)]
        return tuple(
            place
            for i, node in enumerate(nodes.values())
            for place in _bind(node, share_of.count(i), affinity.strict, frozenset(c.number for c in node))
        )
    chosen = affinity.cpus or affinity.numa == "isolate"
    return _bind(cpus, n_threads, affinity.strict, frozenset(c.number for c in cpus if chosen))


def _bind(cpus: Sequence[Cpu], n_threads: int, strict: bool, otherwise: frozenset[int]) -> Places:
    """One CPU a thread where they come out even, else `otherwise` for each."""
    n_cores = len({cpu.core for cpu in cpus})
    if n_threads <= len(cpus) and (strict or n_threads in (n_cores, len(cpus))):
        return tuple(frozenset({cpu.number}) for cpu in cpus[:n_threads])
    return (otherwise,) * n_threads


def _ranges(numbers: list[int]) -> str:
    """As Linux writes them: 0-3,8."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and parts[-1][-1] == n - 1:
            parts[-1][1:] = [n]
        else:
            parts.append([n])
    return ",".join("-".join(map(str, part)) for part in parts) or "none"
