"""The records of `yakvrt transfer --device cuda`: machine and GPU, what was timed, samples; their table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yakvrt.machine_facts import MachineFacts
from yakvrt.record_formats import Table
from yakvrt.terminal import counted
from yakvrt.transfer.gpu_case import DeviceCase
from yakvrt.transfer.records import MEASURED, shown_bytes, shown_time, statistics_of

if TYPE_CHECKING:
    from yakvrt.cuda.device import Device
    from yakvrt.transfer.gpu_clock import Sampled

GPU_SQL_TABLE = "yakvrt_transfer_gpu"
MORE_TIMES = ("transfer_alone_ns", "work_alone_ns", "work_beside_ns")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """Names and sizes; "" or -1 where the system does not say.

    `link`: transfers a second and lanes of the PCI Express link as they are, which an idle GPU lowers, and
    `most_link` as they can be; `gpu_node`: the NUMA node that the GPU is near.
    """

    gpu_info: str
    gpu_memory_bytes: int
    n_multiprocessors: int
    compute_capability: str
    driver: str
    cuda_version: str
    link: str
    most_link: str
    gpu_node: int


def gpu_facts(device: Device, sys_directory: Path = Path("/sys")) -> GpuFacts:
    """Asked while the link is busy, or just behind that. Raises: DeviceError."""
    place = sys_directory / "bus/pci/devices" / device.bus_id()

    def said(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def link(which: str) -> str:
        speed, width = said(place / f"{which}_link_speed"), said(place / f"{which}_link_width")
        return f"{speed.removesuffix(' PCIe')} x{width}" if speed and width else ""

    node = said(place / "numa_node")
    return GpuFacts(
        gpu_info=device.name,
        gpu_memory_bytes=device.memory_bytes,
        n_multiprocessors=device.n_multiprocessors,
        compute_capability="{}.{}".format(*device.capability),
        driver=said(sys_directory / "module/nvidia/version"),
        cuda_version="{}.{}".format(*device.cuda_version),
        link=link("current"),
        most_link=link("max"),
        gpu_node=int(node) if node.lstrip("-").isdigit() else -1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """One case with all its samples.

    Units and statistics as TransferRecord has them. `clock`: "device", by events, or "host"; `is_gated`: the
    stream waited until everything was asked for. `gathered_by`: what gathered on the host. Of "overlap": the
    samples are of both together; what each takes alone, and what the work takes while rows move.
    """

    build_commit: str
    build_number: int
    machine: MachineFacts
    gpu: GpuFacts
    case: DeviceCase
    sampled: Sampled
    gathered_by: str
    test_time: str

    def fields(self) -> dict[str, Any]:
        """Every field in the order of writing."""
        sampled, case = self.sampled, self.case
        more = dict.fromkeys(MORE_TIMES, 0.0) | dict(sampled.more_ns)
        return {
            "build_commit": self.build_commit,
            "build_number": self.build_number,
            **dataclasses.asdict(self.machine),
            **dataclasses.asdict(self.gpu),
            "backends": "CUDA",
            "kind": MEASURED,
            **dataclasses.asdict(case),
            "gathered_by": self.gathered_by,
            "clock": sampled.clock,
            "is_gated": sampled.is_gated,
            "n_loops": sampled.n_loops,
            "verified_bytes": sampled.verified_bytes,
            "test_time": self.test_time,
            **{name: round(value, 1) for name, value in more.items()},
            **statistics_of(case.n_bytes, sampled.samples_ns),
        }


def device_table() -> Table[DeviceRecord]:
    """The Markdown table."""
    widths = {
        "test": -9,
        "method": -12,
        "to": -4,
        "memory": -15,
        "rows": 6,
        "row": 8,
        "how": -36,
        "time": 10,
        "GB/s": 16,
        "cv": 6,
    }
    return Table(widths, _cells, _footer)


def _cells(record: DeviceRecord) -> list[str]:
    case, fields = record.case, record.fields()
    n_bytes = case.n_bytes
    return [
        case.test,
        case.method,
        case.direction,
        case.memory,
        str(case.n_rows) if case.n_rows > 1 else "",
        shown_bytes(case.row_bytes) if n_bytes else "",
        shown_how(fields),
        shown_time(fields["median_ns"]),
        f"{fields['median_gbps']:.2f} ± {fields['stddev_gbps']:.2f}" if n_bytes else "",
        f"{fields['cv']:.1%}",
    ]


def shown_how(fields: dict[str, Any]) -> str:
    """What a case has beside its sizes."""
    parts = [fields["row_order"]] if fields["row_order"] else []
    if fields["row_offset"]:
        parts.append(f"+{fields['row_offset']} B")
    if fields["grid"]:
        parts.append(f"grid {fields['grid']}x{fields['loads']}")
    if fields["n_threads"]:
        parts.append(counted(fields["n_threads"], "thread"))
    if fields["test"] == "pool":
        parts.append(shown_bytes(fields["pool_bytes"]))
    if fields["node"] >= 0:
        parts.append(f"node {fields['node']}")
    if fields["beside"]:
        pays = fields["work_beside_ns"] / fields["work_alone_ns"] if fields["work_alone_ns"] else 0.0
        parts.append(f"{fields['beside']} {pays:.2f}x")
    return ", ".join(parts)


def overlapped(fields: dict[str, Any]) -> float:
    """How much of the shorter of transfer and work ran at the same time as the other: 1 all, 0 nothing."""
    transfer, work = fields["transfer_alone_ns"], fields["work_alone_ns"]
    shorter = min(transfer, work)
    return (transfer + work - fields["median_ns"]) / shorter if shorter else 0.0


def _footer(last: DeviceRecord) -> str:
    gpu = last.gpu
    link = f", {gpu.link}" if gpu.link else ""
    return f"\n{gpu.gpu_info}{link}; build: {last.build_commit} ({last.build_number})\n"
