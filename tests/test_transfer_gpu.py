"""`transfer --device cuda` on the fake driver: calls, bytes, records, the gate, refusals, what is kept."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "bench"))

import bench_gpu
import gpu_transfer
from fake_cubins import write_fake_cubin
from fake_driver import Plugged
from fake_gpu import FakeGpu
from fake_stream import DriverError
from interruption import Interruption

from yakvrt import tuning
from yakvrt.cuda.device import Device
from yakvrt.cuda.driver import DeviceError, DeviceLost, function
from yakvrt.cuda.kernel_choice import gather_blocks
from yakvrt.kernels.gather_rows import gather_rows_ref
from yakvrt.transfer import gpu_latency, gpu_overlap, gpu_plan
from yakvrt.transfer import html as html_report
from yakvrt.transfer import verb as transfer
from yakvrt.transfer.gpu import KERNELS
from yakvrt.transfer.gpu_case import GPU_TESTS, METHODS
from yakvrt.transfer.gpu_gather import NumpyGather
from yakvrt.transfer.gpu_latency import LATENCIES
from yakvrt.transfer.gpu_memory import MEMORIES, on_cpus, source_bytes
from yakvrt.transfer.html import write_report
from yakvrt.transfer.memory import fill

SMALL = ("-dev", "cuda", "--quick", "-r", "5", "-o", "json", "--pool", "32K", "--size", "64,8K")
SMALL_ROWS = ("--row-bytes", "48", "--rows", "5", "--grid", "1", "-t", "1")


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Cubins, and sizes that the emulator runs in no time; what the runtime reads goes elsewhere."""
    directory = tmp_path_factory.mktemp("transfer")
    for spec in KERNELS:
        write_fake_cubin(directory, spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YAKVRT_CUBINS", str(directory))
        patch.setattr(tuning, "cache_directory", lambda: directory / "cache")
        for name, value in (("N_PLACES", 64), ("STEPS", 8), ("GRAPH_LAUNCHES", 3)):
            patch.setattr(gpu_latency, name, value)
        for name, value in (("TIMES", 3), ("FILLER_BYTES", 8192), ("MOST_FILLERS", 1), ("BLOCKS", 1)):
            patch.setattr(gpu_overlap, name, value)
        for name, value in (("POOL_ROWS", 3), ("QUICK_PINNED", [1 << 16]), ("WORK_BYTES", 1 << 20)):
            patch.setattr(gpu_plan, name, value)
        patch.setattr(gpu_plan, "QUICK_SAMPLE_S", 0)
        yield directory


def records_of(capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    code = transfer.main([*SMALL, *SMALL_ROWS, *flags])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    found: list[dict[str, Any]] = json.loads(printed.out)
    return found


def check(record: dict[str, Any]) -> None:
    """What every record must say."""
    assert record["gpu_info"] == "Fake GPU"
    assert (record["cuda_version"], record["compute_capability"], record["link"]) == ("13.0", "9.0", "")
    assert record["cpu_info"]
    assert len(record["samples_ns"]) == 5
    assert record["min_ns"] <= record["median_ns"]
    if record["test"] != "pinning":
        moved = {"copy-h2d": 16, "copy-d2h": 16, "copy-call": 16, "copy-wait": 16, "read": 4}
        assert record["verified_bytes"] == moved.get(record["method"], record["n_bytes"])
    waits = record["memory"] == "pageable" or record["clock"] == "host"
    assert record["is_gated"] == (not waits)


def watch_first_launches(gpu: FakeGpu) -> set[int]:
    """The functions that were launched, none of them first behind a shut gate: a driver that loads a kernel
    when it is first launched may wait for every stream.
    """
    launched: set[int] = set()
    shut, launch, wait = [False], gpu.cuLaunchKernel, gpu.cuStreamWaitValue32

    def waits(stream: int, address: int, value: int, flags: int) -> None:
        shut[0] = bool(value)
        wait(stream, address, value, flags)

    def launches(function: int, *given: int) -> None:
        assert function in launched or not shut[0]
        launched.add(function)
        launch(function, *given)

    def synchronises(event: int) -> None:
        shut[0] = False
        type(gpu).cuEventSynchronize(gpu, event)

    gpu.cuLaunchKernel, gpu.cuStreamWaitValue32 = launches, waits  # type: ignore[method-assign]
    gpu.cuEventSynchronize = synchronises  # type: ignore[method-assign]
    return launched


def test_all_tests(gpu: FakeGpu, patched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, with the report, its plots and what the runtime reads."""
    report, launched = tmp_path / "report.html", watch_first_launches(gpu)
    records = records_of(capsys, "--html", str(report), "--order", "random")
    if gpu.failures:
        raise gpu.failures[0]
    assert not gpu.held
    assert len(launched) == len(KERNELS)
    for record in records:
        check(record)
    assert [*dict.fromkeys(r["test"] for r in records)] == [name for name in GPU_TESTS if name != "numa"]
    assert [r["method"] for r in records if r["test"] == "latency"] == list(LATENCIES)
    assert {r["memory"] for r in records if r["test"] == "copy"} == {*MEMORIES, ""}
    rows = [r for r in records if r["test"] == "rows"]
    assert {(r["method"], r["row_offset"]) for r in rows} == {
        *((method, 0) for method in METHODS),
        *((method, 16) for method in METHODS if method != "copy-2d"),
    }
    assert {r["row_order"] for r in rows if r["method"] == "copy-2d"} == {"even"}
    writes = [(r["method"], r["grid"], r["direction"]) for r in records if r["test"] == "write"]
    assert writes == [("copy", 0, "d2h"), ("zero-copy", 1, "d2h")]
    beside = {(r["beside"], r["direction"]) for r in records if r["test"] == "overlap"}
    assert beside == {*product(("arithmetic", "memory"), ("h2d", "d2h")), ("copy-d2h", "h2d")}
    assert all(r["work_beside_ns"] > 0 for r in records if r["test"] == "overlap")
    for name in ("cuMemcpyBatchAsync", "cuMemcpy2DAsync", "cuGraphLaunch", "cuMemHostRegister"):
        assert name in gpu.calls
    kept = tuning.load("Fake GPU")
    assert kept
    rates = tuning.LinkRates.read(kept)
    assert rates
    assert rates.gather_blocks == gather_blocks("Fake GPU") == 1
    assert kept["link"]["methods"].keys() == {"48"}
    check_report(report.read_text(), [name for name in GPU_TESTS if name != "numa"], 6)


@pytest.mark.usefixtures("gpu", "patched")
@pytest.mark.parametrize("flags", [("--offset", "16"), ("--method", "copy-2d,zero-copy")])
def test_rows_without_a_map_are_drawn(flags: tuple[str, ...], tmp_path: Path) -> None:
    """All of them off their lines; one that lies evenly timed first."""
    rows = ("--test", "rows", "--order", "random", *flags, "--plot", str(tmp_path))
    assert transfer.main([*SMALL, *SMALL_ROWS, *rows]) == 0
    assert (tmp_path / "transfer-gpu-rows.svg").exists()
    assert (tmp_path / "transfer-gpu-map.svg").exists() == ("--method" in flags)


class Report(HTMLParser):
    """Checks that elements are closed, names are unique, and nothing is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag not in ("script", "link", "img", "iframe", "object")
        assert "src" not in given
        for name in ("href", "xlink:href"):
            assert (given.get(name) or "#").startswith(("#", "data:image/png;"))
        self.ids += [str(given["id"])] if "id" in given else []
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()


def check_report(text: str, tests: list[str], n_plots: int) -> None:
    parser = Report()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids)
    assert parser.count.get("svg", 0) == n_plots
    assert re.findall(r"<h2>([^<]+)</h2>", text) == ["Machine and build", *tests]
    assert not re.search(r"url\((?!#)|@import", text)


def test_a_report_of_the_host_is_escaped_and_whole_or_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--quick", "--test", "op,copy", "--size", "4K", "-t", "1")
    assert transfer.main([*flags, "--pool", "1M", "-r", "5", "-o", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    for record in records:
        record["cpu_info"] = "<script>alert('CPU')</script>"
    path = tmp_path / "report.html"
    write_report(path, records)
    check_report(path.read_text(), ["op", "copy"], 1)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(path, records[:1])
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_bytes() == before
    for wrong in (tmp_path, tmp_path / "none" / "report.html"):
        assert transfer.main([*flags, "--html", str(wrong)]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.fullmatch(r"yakvrt: error: [^\n]+\n", printed.err)


@pytest.mark.parametrize(
    ("name", "n", "after"),
    [
        ("cuStreamWaitValue32", 4, True),
        ("cuMemcpyHtoDAsync", 20, False),
        ("cuEventRecord", 24, True),
        ("cuMemHostRegister", 1, True),
        ("cuLaunchKernel", 9, True),
    ],
)
def test_ctrl_c_keeps_what_was_measured_and_opens_the_gate(
    gpu: FakeGpu,
    patched: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    n: int,
    after: bool,
) -> None:
    """A gate that stayed shut would let the fake driver fail when memory is given back. No plots: they take
    longer than the rest.
    """
    monkeypatch.setattr(html_report, "find_spec", lambda name: None)
    report = tmp_path / "report.html"
    interruption = Interruption(monkeypatch, n, name, after=after)
    flags = ("--test", "copy,rows", "--size", "4K", "--memory", "pinned,registered", "--method", "zero-copy")
    assert transfer.main([*SMALL, *SMALL_ROWS, *flags, "--html", str(report)]) == 130
    assert interruption.happened
    assert not gpu.failures
    assert not gpu.held
    records = json.loads(capsys.readouterr().out or "[]")
    assert all(record["verified_bytes"] == record["n_bytes"] for record in records)
    assert bool(records) == (name != "cuStreamWaitValue32")
    assert report.exists() == bool(records)
    if records:
        check_report(report.read_text(), [*dict.fromkeys(record["test"] for record in records)], 0)


def test_ctrl_c_while_a_record_is_printed_gives_back_all_before_the_gpu(
    gpu: FakeGpu, patched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    whole_close = Device.close
    monkeypatch.setattr(
        Device, "close", lambda device: (closed.append(bool(gpu.pinned)), whole_close(device))
    )

    def interrupted(*given: object, **how: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("yakvrt.record_formats.print", interrupted, raising=False)
    assert transfer.main([*SMALL, "--test", "copy", "--memory", "pinned"]) == 130
    assert closed == [False]
    assert not gpu.held


@pytest.mark.parametrize(
    ("call", "flags", "says"),
    [
        (
            "cuMemcpyHtoDAsync",
            ("--direction", "h2d", "--memory", "pinned"),
            r"copy of 1 x 64 bytes left wrong",
        ),
        (
            "cuMemcpyDtoHAsync",
            ("--direction", "d2h", "--memory", "pinned"),
            r"copy of 1 x 64 bytes left wrong",
        ),
        (
            "cuMemcpyHtoDAsync",
            ("--test", "rows", "--method", "copy-rows"),
            r"rows \(copy-rows\) of 5 x 48 bytes",
        ),
    ],
)
def test_one_wrong_byte_ends_the_run(
    gpu: FakeGpu,
    patched: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    flags: tuple[str, ...],
    says: str,
) -> None:
    right = getattr(gpu, call)
    monkeypatch.setattr(gpu, call, lambda to, source, n, stream: right(to, source, max(4, n - 1), stream))
    test = () if "--test" in flags else ("--test", "copy")
    assert transfer.main([*SMALL, *SMALL_ROWS, *test, *flags]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"yakvrt: error: {says}[^\n]*\n", printed.err)
    assert not gpu.held


def test_a_driver_without_the_gate(gpu: FakeGpu, patched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.faults["cuStreamWaitValue32"] = 801
    records = records_of(capsys, "--test", "copy", "--memory", "pinned")
    assert len(records) == 7
    assert not any(record["is_gated"] for record in records)


def test_a_function_that_a_driver_does_not_have(gpu: FakeGpu) -> None:
    with Device():
        assert function("cuMemcpyOfTheFuture") is None
        copy = function("cuMemcpyHtoDAsync", *[ctypes.c_size_t] * 4)
        assert copy
        with pytest.raises(DeviceLost, match="a kernel failed"):
            copy(1, 2, 3, 4)
        gpu.faults = {"cuMemcpyHtoDAsync": 5555}
        with pytest.raises(DeviceError, match="refused cuMemcpyHtoDAsync: error 5555"):
            copy(1, 2, 3, 4)


def test_a_lost_gpu_is_one_sentence(gpu: FakeGpu, patched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lose(*_: int) -> None:
        gpu.lost = 700
        raise DriverError(700)

    gpu.cuMemcpyDtoHAsync = lose  # type: ignore[method-assign]
    assert transfer.main([*SMALL, *SMALL_ROWS, "--test", "copy", "--memory", "pinned"]) == 1
    printed = capsys.readouterr()
    assert re.fullmatch(r"yakvrt: error: [^\n]*the GPU is lost to this process[^\n]*\n", printed.err)


@pytest.mark.parametrize("number", ["cuda", "cuda:7"])
def test_no_such_gpu(
    fake_driver: None, patched: Path, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    Plugged.gpu = None if number == "cuda" else FakeGpu()
    assert transfer.main([*SMALL, "-dev", number]) == 1
    Plugged.gpu = None
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"yakvrt: error: there is no (NVIDIA GPU|GPU 7)[^\n]*\n", printed.err)


def test_a_thread_moves_to_a_node_and_back() -> None:
    before = os.sched_getaffinity(0)
    some = [min(before)]
    with on_cpus(some):
        assert os.sched_getaffinity(0) == set(some)
    assert os.sched_getaffinity(0) == before
    with on_cpus([]):
        assert os.sched_getaffinity(0) == before


def test_sources_are_told_by_their_place() -> None:
    source = np.empty(1000, np.uint8)
    fill(source)
    np.testing.assert_array_equal(source_bytes(3, 997), source[3:997])
    part = np.empty(80, np.uint8)
    fill(part, 5)
    np.testing.assert_array_equal(part, source[40:120])


@pytest.mark.parametrize("n_threads", [1, 3])
def test_rows_are_gathered_without_a_compiler(n_threads: int) -> None:
    rng = np.random.default_rng(n_threads)
    rows, ids = rng.integers(0, 256, (50, 48), np.uint8), rng.integers(0, 50, 7, np.int32)
    out, gather = np.full((7, 48), 0xCD, np.uint8), NumpyGather(n_threads)
    gather.prepared(out, rows, ids)()
    gather.close()
    np.testing.assert_array_equal(out, gather_rows_ref(rows, ids))


ENDLESS = """
import json, sys, time
print(json.dumps({"test": "copy", "method": "copy", "memory": "pinned", "n_bytes": 1}), flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print(json.dumps({"test": "last", "method": "", "memory": ""}))
    sys.stdout.write('{"half')
    raise SystemExit(130)
"""


def test_transfers_behind_the_steps_of_test_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_transfer, "LEAST_S", 0)
    found = gpu_transfer.examine_transfers([sys.executable, "-c", ENDLESS], gpu_transfer.GRACE_S + 1.0)
    assert [record["test"] for record in found["records"]] == ["copy", "last"]
    assert found["error"] == "code 130: "
    assert found["link"] is None
    assert "were left" in gpu_transfer.examine_transfers([], 5)["error"]
    events = [{"device": {"name": "GPU"}}, {"step": 0, "facts": {}}]
    result = tmp_path / "result.json"
    assert bench_gpu.report(events, ["one"], result, lambda: found) == 1
    assert json.loads(result.read_text())["transfer"] == found
    assert bench_gpu.report(events, ["one"], result, lambda: {**found, "error": None}) == 0
    assert bench_gpu.report([{"refused": "no GPU"}], ["one"], result, lambda: pytest.fail("no device")) == 1


def test_it_runs_without_a_compiler() -> None:
    """What a deployment has: numpy, cuda-bindings, cubins. Here it ends where it finds no such GPU."""
    code = """
import sys
for name in ("numba", "llvmlite", "numba_cuda", "matplotlib", "rich"):
    sys.modules[name] = None
import yakvrt.transfer.gpu, yakvrt.transfer.html
from yakvrt.transfer import verb as transfer
sys.exit(transfer.main(["-dev", "cuda:99", "--cubins", "."]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"yakvrt: error: there is no [^\n]+\n", done.stderr)
