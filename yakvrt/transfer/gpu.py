"""Runs the cases of `yakvrt transfer --device cuda` and makes their records."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Protocol

from yakvrt.bench_facts import build
from yakvrt.cpu.topology import default_threads, machine_topology
from yakvrt.cuda.device import Device
from yakvrt.cuda.device_kernels import Kernels, built_kernels, compiled_kernels
from yakvrt.cuda.kernel_choice import GATHER_LOADS
from yakvrt.free_memory import available_memory
from yakvrt.kernel_build.spec import KernelSpec, kernel
from yakvrt.machine_facts import MachineFacts
from yakvrt.transfer.gpu_case import DeviceCase
from yakvrt.transfer.gpu_clock import DeviceClock, Sampled, device_clock
from yakvrt.transfer.gpu_copies import Copies
from yakvrt.transfer.gpu_gather import HostGather, host_gather
from yakvrt.transfer.gpu_latency import Latency
from yakvrt.transfer.gpu_overlap import Overlap
from yakvrt.transfer.gpu_pinning import Pinning
from yakvrt.transfer.gpu_plan import GpuPlan, Room, gpu_plan
from yakvrt.transfer.gpu_records import DeviceRecord, gpu_facts
from yakvrt.transfer.gpu_rows import Rows, batch_function
from yakvrt.transfer.gpu_write import Writes

KERNELS: tuple[KernelSpec, ...] = (
    *(kernel("gather_rows", "gather_rows_cuda", loads) for loads in GATHER_LOADS),
    kernel("pointer_chase", "pointer_chase_cuda"),
    kernel("multiply_adds", "multiply_adds_cuda"),
)
PINNABLE = 7 / 8  # of the host's free memory, which the system never gets back meanwhile: a guess

Report = Callable[[str, int, int], None]


class Timer(Protocol):
    """What times the cases of one memory."""

    def time(self, case: DeviceCase) -> Sampled: ...


class Gpu:
    """A GPU that is open for timing; `opened` closes it."""

    def __init__(self, held: ExitStack, number: int, cubins: Path | None) -> None:
        """Raises: DeviceError, ValueError where `cubins` are of other sources."""
        self.device = Device(number)
        held.callback(self.device.close)
        self.kernels: Kernels = (
            built_kernels(self.device, cubins) if cubins else compiled_kernels(self.device)
        )
        held.callback(self.kernels.close)

    def plan(self, args: argparse.Namespace, machine: MachineFacts) -> GpuPlan:
        """Raises: as gpu_plan."""
        room = Room(
            host_bytes=int(available_memory() * PINNABLE),
            device_bytes=self.device.free_bytes(),
            n_threads=default_threads(),
            n_cpus=machine.n_cpus,
            nodes=sorted(machine_topology().nodes),
            has_batch=batch_function() is not None,
        )
        return gpu_plan(args, room)


@contextmanager
def opened(number: int, cubins: Path | None) -> Iterator[Gpu]:
    """Raises: DeviceError."""
    with ExitStack() as held:
        yield Gpu(held, number, cubins)


def device_records(
    gpu: Gpu, planned: GpuPlan, machine: MachineFacts, report: Report
) -> Iterator[DeviceRecord]:
    """Times case after case and yields a record of each as it ends.

    Raises: DeviceError, RuntimeError for wrong bytes.
    """
    commit, number = build()
    gpu.kernels.prepare(KERNELS, lambda done, total, name: report(f"compiling {name}", done, total))
    n_done = 0
    with device_clock(planned.n_samples, planned.sample_s) as clock:
        for _, group in groupby(planned.cases, key=_memory_of):
            cases = list(group)
            with ExitStack() as held:
                gathers = _gathers(held, cases)
                timer = _timer(held, gpu, clock, cases, gathers)
                for case in cases:
                    report(f"timing: {case.name}", n_done, len(planned.cases))
                    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                    sampled = timer.time(case)
                    n_done += 1
                    yield DeviceRecord(
                        build_commit=commit,
                        build_number=number,
                        machine=machine,
                        gpu=gpu_facts(gpu.device),
                        case=case,
                        sampled=sampled,
                        gathered_by=gathers[case.n_threads].by if case.method == "gather+copy" else "",
                        test_time=began,
                    )


def _memory_of(case: DeviceCase) -> tuple[str, str, int, int]:
    """Cases of the same one run in the same memory."""
    kind = case.memory if case.test in ("copy", "numa") else ""
    return case.test, kind, case.node, case.pool_bytes


def _gathers(held: ExitStack, cases: Sequence[DeviceCase]) -> dict[int, HostGather]:
    """Threads of the host by their number."""
    found: dict[int, HostGather] = {}
    for n in sorted({case.n_threads for case in cases if case.method == "gather+copy"}):
        found[n] = host_gather(n)
        held.callback(found[n].close)
    return found


def _timer(
    held: ExitStack,
    gpu: Gpu,
    clock: DeviceClock,
    cases: Sequence[DeviceCase],
    gathers: dict[int, HostGather],
) -> Timer:
    test, node = cases[0].test, cases[0].node
    if test == "latency":
        return Latency(held, gpu.kernels, clock)
    if test == "pinning":
        return Pinning(clock.n_samples)
    if test == "write":
        return Writes(held, gpu.kernels, clock, cases)
    if test in ("copy", "numa"):
        near = [cpu.number for cpu in machine_topology().nodes[node]] if node >= 0 else []
        return Copies(held, clock, cases, near)
    rows = Rows(held, gpu.device, gpu.kernels, clock, cases, gathers)
    return Overlap(held, gpu.device, gpu.kernels, clock, rows, cases) if test == "overlap" else rows
