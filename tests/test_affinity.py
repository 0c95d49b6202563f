"""CPU topology from a /sys tree, and which CPUs the flags give each thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from yakvrt.cpu.affinity import Affinity, place_threads, usable
from yakvrt.cpu.topology import Topology, machine_topology, parse_cpu_list


def sys_tree(directory: Path, cores: list[tuple[int, ...]], nodes: list[str]) -> Path:
    """A /sys of these cores, each with its logical CPUs, and these lists of CPUs a node."""
    for siblings in cores:
        for cpu in siblings:
            place = directory / f"devices/system/cpu/cpu{cpu}/topology"
            place.mkdir(parents=True)
            (place / "thread_siblings_list").write_text(",".join(map(str, siblings)) + "\n")
    for number, cpus in enumerate(nodes):
        place = directory / f"devices/system/node/node{number}"
        place.mkdir(parents=True)
        (place / "cpulist").write_text(cpus + "\n")
    return directory


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """Two nodes of two cores of two threads, numbered as Linux does: siblings last."""
    return sys_tree(tmp_path, [(0, 4), (1, 5), (2, 6), (3, 7)], ["0-1,4-5", "2-3,6-7"])


def placed(topology: Topology, n_threads: int, affinity: Affinity | None = None) -> list[set[int]]:
    affinity = affinity or Affinity()
    return [set(place) for place in place_threads(affinity, usable(affinity, topology), n_threads)]


def test_topology_of_two_nodes(server: Path) -> None:
    topology = machine_topology(server, range(8), here=6)
    assert [cpu.number for cpu in topology.cpus] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [cpu.core for cpu in topology.cpus] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert {n: [c.number for c in cpus] for n, cpus in topology.nodes.items()} == {
        0: [0, 1, 4, 5],
        1: [2, 3, 6, 7],
    }
    assert topology.n_cores == 4


def test_a_mask_from_outside_leaves_siblings_as_cores(server: Path) -> None:
    """taskset -c 4-7: the first of every core that is allowed stands for it."""
    topology = machine_topology(server, range(3, 8), here=4)
    assert [cpu.number for cpu in topology.cpus] == [3, 4, 5, 6, 7]
    assert topology.n_cores == 4
    assert [cpu.number for cpu in topology.cpus[:4]] == [3, 4, 5, 6]


def test_one_thread_a_core_is_pinned_and_fewer_are_not(server: Path) -> None:
    topology = machine_topology(server, range(8), here=0)
    assert placed(topology, 4) == [{0}, {1}, {2}, {3}]
    assert placed(topology, 8) == [{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}]
    assert placed(topology, 3) == placed(topology, 5)[:3] == [set(), set(), set()]


def test_a_quota_leaves_placing_to_the_system(server: Path) -> None:
    """Two containers of two CPUs each must not both sit on the first two."""
    held = machine_topology(server, range(8), here=0)
    limited = Topology(held.cpus, quota=2)
    assert limited.best_threads == limited.most_threads == 2
    assert placed(limited, 2) == [set(), set()]


def test_chosen_cpus(server: Path) -> None:
    topology = machine_topology(server, range(8), here=0)
    some = Affinity(cpus=(1, 2, 5))
    assert usable(some, topology).best_threads == 2
    assert placed(topology, 2, some) == [{1}, {2}]
    assert placed(topology, 1, some) == [{1, 2, 5}]
    assert placed(topology, 1, Affinity(cpus=(1, 2, 5), strict=True)) == [{1}]
    assert placed(topology, 6, Affinity(strict=True)) == [{0}, {1}, {2}, {3}, {4}, {5}]


def test_numa_distribute_spreads_evenly(server: Path) -> None:
    topology = machine_topology(server, range(8), here=0)
    distribute = Affinity(numa="distribute")
    assert placed(topology, 4, distribute) == [{0}, {1}, {2}, {3}]
    assert placed(topology, 2, distribute) == [{0, 1, 4, 5}, {2, 3, 6, 7}]
    assert placed(topology, 3, distribute) == [{0}, {1}, {2, 3, 6, 7}]
    assert placed(topology, 2, Affinity(numa="distribute", strict=True)) == [{0}, {2}]
    assert placed(topology, 4, Affinity(cpus=(0, 1, 2, 6), numa="distribute")) == [{0}, {1}, {2}, {6}]


def test_numa_isolate_takes_the_node_of_the_process(server: Path) -> None:
    topology = machine_topology(server, range(8), here=6)
    isolate = Affinity(numa="isolate")
    assert usable(isolate, topology).best_threads == 2
    assert placed(topology, 2, isolate) == [{2}, {3}]
    assert placed(topology, 1, isolate) == [{2, 3, 6, 7}]


def test_numa_numactl_is_the_default(server: Path) -> None:
    topology = machine_topology(server, range(8), here=6)
    for n_threads in range(1, 9):
        assert placed(topology, n_threads, Affinity(numa="numactl")) == placed(topology, n_threads)


def test_one_node_or_none_changes_nothing(tmp_path: Path) -> None:
    topology = machine_topology(sys_tree(tmp_path, [(0,), (1,)], []), (0, 1), here=1)
    for numa in ("", "distribute", "isolate", "numactl"):
        assert placed(topology, 2, Affinity(numa=numa)) == [{0}, {1}]


@pytest.mark.parametrize(
    ("affinity", "n_threads", "said"),
    [
        (Affinity(cpus=(1, 9)), 1, r"^CPU 9 is in --cpu-mask or --cpu-range, and .* may use 0-7; name some"),
        (Affinity(strict=True), 9, r"9 threads have 8; lower --threads to 8$"),
        (Affinity(cpus=(0, 1), numa="isolate"), 1, r"runs on CPU 6, which --cpu-mask leaves out"),
        (Affinity(numa="mirror"), 1, r"'mirror' is not known; choose one of distribute, isolate, numactl$"),
    ],
)
def test_what_cannot_be_is_refused(server: Path, affinity: Affinity, n_threads: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        placed(machine_topology(server, range(8), here=6), n_threads, affinity)


def test_a_system_without_affinity() -> None:
    unknown = Topology(())
    assert placed(unknown, 3) == [set(), set(), set()]
    assert unknown.most_threads == (os.cpu_count() or 1)
    with pytest.raises(ValueError, match="does not bind threads"):
        placed(unknown, 1, Affinity(cpus=(0,)))


def test_this_machine_is_described() -> None:
    topology = machine_topology()
    assert {cpu.number for cpu in topology.cpus} == os.sched_getaffinity(0)
    assert 1 <= topology.best_threads <= topology.most_threads


@pytest.mark.parametrize(("text", "numbers"), [("0-3,8", (0, 1, 2, 3, 8)), ("5", (5,)), (" 1, 0 \n", (0, 1))])
def test_cpu_lists(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == numbers


@pytest.mark.parametrize("text", ["", "3-1", "-1", "a", "0-99999", "1,,2", "0x3"])
def test_bad_cpu_lists(text: str) -> None:
    with pytest.raises(ValueError, match="no range of CPUs"):
        parse_cpu_list(text)
