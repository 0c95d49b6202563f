"""What `transfer --device cuda` would run, what it says of the link, and what it tells the runtime."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeGpu

from yakvrt import tuning
from yakvrt.cuda.device import Device
from yakvrt.cuda.kernel_choice import GATHER_BLOCKS, gather_blocks
from yakvrt.terminal import UsageError
from yakvrt.transfer.arguments import build_parser
from yakvrt.transfer.gpu_case import DeviceCase
from yakvrt.transfer.gpu_plan import Room, gpu_plan
from yakvrt.transfer.gpu_records import gpu_facts
from yakvrt.transfer.gpu_rows import Rows
from yakvrt.transfer.tuning import crossover_bytes, fewest_blocks, host_rates, link_rates

ROOM = Room(64 << 30, 64 << 30, 4, 4, (0,), True)
VAST = Room(1 << 40, 1 << 40, 4, 4, (0,), True)


def planned(*flags: str, room: Room = ROOM) -> list[DeviceCase]:
    return gpu_plan(build_parser().parse_args(["-dev", "cuda", *flags]), room).cases


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--test", "gather"), "none of latency, copy, rows"),
        (("--memory", "swap"), "none of pinned, pageable"),
        (("--method", "magic"), "none of zero-copy"),
        (("--direction", "up"), "none of h2d, d2h, both"),
        (("--grid", "0"), "--grid 0 is out of range: give 1 to"),
        (("--row-bytes", "24"), "a multiple of 16"),
        (("--offset", "8"), "a multiple of 16"),
        (("--rows", "0"), "--rows 0"),
        (("--size", "0"), "--size 0"),
        (("--pool", "0"), "--pool 0"),
        (("-t", "5"), "may use 1 to 4 CPUs"),
        (("-r", "4"), "at least 5"),
        (("--pages", "huge"), "--pages is for tests of the host alone"),
        (("--link-gbps", "5"), "--link-gbps is for tests of the host alone"),
        (("--test", "numa"), "nothing to run: this machine has one NUMA node"),
    ],
)
def test_the_plan_refuses(flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        planned(*flags)


def test_ids_of_rows_are_whatever_the_pool_is_32_bits_wide() -> None:
    (case, *_) = planned(
        "--test", "rows", "--method", "zero-copy", "--pool", "64G", "--row-bytes", "16", room=VAST
    )
    rows = Rows.__new__(Rows)
    rows.pool_bytes = case.pool_bytes
    rows.source = SimpleNamespace(array=np.broadcast_to(np.uint8(0), case.pool_bytes))  # type: ignore[assignment]
    assert rows._rows(case).shape == ((1 << 31) - 1, 16)


def test_sizes_asked_for_must_fit_both_memories() -> None:
    with pytest.raises(
        ValueError, match=r"a copy of 1 x \d+ bytes needs 100\.\d+ GiB of host memory and 64\.00"
    ):
        planned("--size", "100G")
    small = Room(64 << 30, 2 << 30, 4, 4, (0,), True)
    with pytest.raises(
        ValueError, match=r"needs 4\.\d+ GiB of GPU memory and 2\.00 GiB is free: lower the sizes"
    ):
        planned("--size", "4G", room=small)
    with pytest.raises(ValueError, match="needs a pool of 4294967296 bytes and has 1073741824: raise --pool"):
        planned("--test", "rows", "--rows", "64K", "--row-bytes", "32K")
    with pytest.raises(ValueError, match=r"pool \(zero-copy\) of 65536 x 128 bytes needs 128\."):
        planned("--pool", "1G,128G")
    large = ("--test", "rows", "--pool", "4G", "--rows", "64K", "--row-bytes", "16K", "--method")
    assert planned(*large, "zero-copy")
    with pytest.raises(
        ValueError, match="needs a pool of 2147483648 bytes and has 1073741824: lower the sizes"
    ):
        planned(*large, "copy-rows")
    assert max(c.row_bytes for c in planned("--test", "copy", room=small)) == 1 << 30
    assert [c.pool_bytes >> 30 for c in planned("--test", "pool", "--order", "random")] == [
        1,
        2,
        4,
        8,
        16,
        32,
    ]


def test_what_is_planned() -> None:
    with_nodes = Room(64 << 30, 64 << 30, 4, 4, (0, 1), False)
    cases = planned(room=with_nodes)
    assert len(set(cases)) == len(cases)
    assert not [case for case in cases if case.method == "copy-batch"]
    assert {(c.node, c.direction) for c in cases if c.test == "numa"} == {
        (node, way) for node in (0, 1) for way in ("h2d", "d2h")
    }
    both = [case for case in cases if case.direction == "both"]
    assert {case.memory for case in both} == {"pinned"}
    assert {c.direction for c in cases if c.memory == "write-combined"} == {"h2d"}
    grids = [c.grid for c in cases if c.test == "rows" and (c.n_rows, c.row_bytes) == (64, 128) and c.grid]
    assert grids[0] == GATHER_BLOCKS
    assert {c.loads for c in cases if c.test == "in-flight"} == {1, 2, 4, 8}


def test_the_link_is_read_from_the_system(gpu: FakeGpu, tmp_path: Path) -> None:
    place = tmp_path / "bus/pci/devices/ffff:ff:1f.0"
    place.mkdir(parents=True)
    said = {
        "current_link_speed": "2.5 GT/s PCIe",
        "current_link_width": "16",
        "max_link_speed": "32.0 GT/s PCIe",
        "max_link_width": "16",
        "numa_node": "-1",
    }
    for name, text in said.items():
        (place / name).write_text(text + "\n")
    with Device() as device:
        facts = gpu_facts(device, tmp_path)
    assert (facts.link, facts.most_link, facts.gpu_node, facts.driver) == (
        "2.5 GT/s x16",
        "32.0 GT/s x16",
        -1,
        "",
    )


def row(method: str, size: int, gbps: float, grid: int = 0) -> dict[str, Any]:
    """A record of 8192 rows."""
    case = DeviceCase(test="rows", method=method, n_rows=8192, row_bytes=size, row_order="random", grid=grid)
    fields = {name: getattr(case, name) for name in ("test", "method", "n_rows", "row_bytes", "row_order")}
    more = {"row_offset": 0, "grid": grid, "memory": "", "n_bytes": case.n_bytes}
    return {**fields, **more, "median_ns": case.n_bytes / gbps}


def test_what_the_runtime_is_told() -> None:
    reads = [row("zero-copy", 128, gbps, grid) for grid, gbps in ((4, 20), (16, 39), (32, 40), (132, 38.9))]
    assert fewest_blocks(reads) == 16
    assert fewest_blocks([]) == 0
    assert (
        crossover_bytes({64: "copy-batch", 128: "zero-copy", 1024: "copy-batch", 4096: "copy-rows"}) == 1024
    )
    assert crossover_bytes({64: "copy-batch", 128: "zero-copy"}) == 0
    assert link_rates(reads) is None  # without copies and latencies
    assert link_rates([]) is None


def test_rates_of_the_host() -> None:
    def gather(**changed: Any) -> dict[str, Any]:
        own = {"test": "gather", "kind": "measured", "n_rows": 4096, "row_bytes": 128, "row_order": "random"}
        own |= {"row_offset": 0, "n_bytes": 4096 * 128, "test_time": "now", "build_commit": "abc"}
        return own | {"median_ns": 2 * 4096 * 128} | changed

    records = [
        gather(),
        gather(median_ns=4096 * 128 / 8),  # with more threads
        gather(median_ns=1, row_order="sorted"),
        gather(median_ns=1, kind="modelled"),
        gather(median_ns=1, n_rows=64, n_bytes=64 * 128),
        gather(median_ns=1, row_bytes=4096, n_bytes=4096 * 4096),
    ]
    assert host_rates(records) == {"gather_gbps": 8, "measured": "now", "build": "abc"}
    assert host_rates(records[-2:]) is None
    assert host_rates([]) is None


def test_measurements_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuning, "cache_directory", lambda: tmp_path)
    assert gather_blocks("GPU") == GATHER_BLOCKS
    tuning.save("GPU", "link", {"gather_blocks": 8})
    assert gather_blocks("GPU") == GATHER_BLOCKS

    def nowhere() -> Path:
        raise RuntimeError("there is no home directory")

    monkeypatch.setattr(tuning, "cache_directory", nowhere)
    assert gather_blocks("GPU") == GATHER_BLOCKS
