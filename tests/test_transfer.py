"""The transfer verb: what it runs, records in every format, bytes that are compared, bad input and Ctrl-C."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bad_input_cli import sentence, yakvrt

from yakvrt.cpu.memory import aligned
from yakvrt.kernels.copy_bytes import copy_bytes_ref
from yakvrt.machine_facts import MachineFacts, machine_facts
from yakvrt.terminal import UsageError
from yakvrt.transfer import timing as transfer_timing
from yakvrt.transfer import verb as transfer
from yakvrt.transfer.arguments import build_parser, byte_counts
from yakvrt.transfer.link import lines_per_row
from yakvrt.transfer.memory import POISON, SLACK, HostMemory
from yakvrt.transfer.plan import ROW_COUNTS, ROW_SIZES, SIZES, Case, Plan, Setting, plan
from yakvrt.transfer.records import shown_bytes, shown_time

MACHINE = MachineFacts("A CPU", 4, 1, 32 << 20, 8 << 30, "madvise", "Linux 6")
SMALL_ROWS = ("--row-bytes", "32,136", "--rows", "7")
SMALL = ("--quick", "--pool", "1M", "--size", "4K", *SMALL_ROWS, "-t", "1", "-r", "5")
LINK = ("--link-gbps", "50", "--latency-us", "2")


def planned(*flags: str, machine: MachineFacts = MACHINE, free_bytes: int = 8 << 30) -> Plan:
    return plan(build_parser().parse_args(flags), machine, free_bytes, 4)


def test_bytes_have_suffixes() -> None:
    assert byte_counts("64,4k,1M-4M*2,2G") == [64, 4096, 1 << 20, 2 << 20, 4 << 20, 2 << 30]
    for text in ("4KB", "x", "-1", "1.5K", "99999999999999999K", "4K-1K"):
        with pytest.raises(ValueError, match=r"[:;] "):
            byte_counts(text)


def test_every_other_flag_is_varied_alone() -> None:
    found = planned()
    first = Setting("random", 0, "huge", 4)
    assert found.setting == first
    gathers = [case for case in found.cases if case.test == "gather"]
    assert {case.setting for case in gathers} == {
        first,
        Setting("sorted", 0, "huge", 4),
        Setting("random", 16, "huge", 4),
        Setting("random", 0, "small", 4),
        Setting("random", 0, "huge", 2),
        Setting("random", 0, "huge", 1),
    }
    fitting = [(n, size) for size in ROW_SIZES for n in ROW_COUNTS if 2 * n * size <= 1 << 30]
    assert [(c.n_rows, c.row_bytes) for c in gathers if c.setting == first] == fitting
    assert [c.row_bytes for c in found.cases if c.test == "copy" and c.setting.n_threads == 2] == SIZES
    kinds = [case.setting.pages for case in found.cases]
    assert kinds == sorted(kinds)  # all that takes huge pages, then all that takes small ones
    assert len(set(found.cases)) == len(found.cases)
    assert len(planned("--quick").cases) < len(found.cases) / 5


def test_defaults_are_bounded_by_memory_and_the_cache() -> None:
    assert planned().pool_bytes == 1 << 30
    little = planned(free_bytes=256 << 20)
    assert little.pool_bytes == 64 << 20
    assert little.out_bytes <= little.pool_bytes
    large_cache = MachineFacts("A CPU", 4, 1, 1 << 30, 64 << 30, "", "")
    assert planned(machine=large_cache, free_bytes=64 << 30).pool_bytes == 4 << 30


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--test", "copi"), "none of job, op, copy, copy-cached, gather"),
        (("--order", "up"), "none of random, sorted"),
        (("--pages", "big"), "none of huge, small"),
        (("--size", "0"), "--size 0 is out of range: give 64 to"),
        (("--size", "100"), "a multiple of 64"),
        (("--rows", "0"), "--rows 0"),
        (("--row-bytes", "0"), "--row-bytes 0"),
        (("--row-bytes", "4"), "--row-bytes 4"),
        (("--row-bytes", "33"), "a multiple of 8"),
        (("--offset", "4096"), "--offset 4096"),
        (("--pool", "0"), "--pool 0"),
        (("-t", "0"), "may use 1 to 4 CPUs"),
        (("-t", "5"), "may use 1 to 4 CPUs"),
        (("-r", "4"), "at least 5"),
        (("--grid", "4"), "--grid is for tests of a GPU: add --device cuda"),
        (("--link-gbps", "50"), "give both"),
        (("--link-gbps", "0", "--latency-us", "1"), "is no link"),
        (("--link-gbps", "nan", "--latency-us", "1"), "is no link"),
        ((*LINK, "--test", "copy"), "add gather to --test"),
        (("--pool", "4K", "--test", "gather", "--quick"), "nothing to run"),
    ],
)
def test_plan_refuses(flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        planned(*flags)


def test_sizes_asked_for_must_fit() -> None:
    with pytest.raises(ValueError, match="a copy of 1 x 2147483648 bytes needs a source of 2147483648 bytes"):
        planned("--size", "2G")
    with pytest.raises(ValueError, match="needs a source of 4194304 bytes and has 1048576"):
        planned("--pool", "1M", "--rows", "64K", "--test", "gather")
    found = planned("--pool", "1M", "--rows", "64,4K", "--test", "gather").cases
    assert {case.row_bytes for case in found if case.n_rows == 4096} == {32, 64, 128}
    assert not [c for c in planned("--size", "4K", "--pool", "1M").cases if c.least_pool > 1 << 20]


def run(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert transfer.main([*SMALL, *flags]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # progress is for terminals
    return printed.out


def from_sql(text: str) -> list[dict[str, Any]]:
    with sqlite3.connect(":memory:") as database:
        database.executescript(text)
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM yakvrt_transfer")]


def from_markdown(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert text.splitlines()[-1].startswith("build: ")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


READERS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "md": from_markdown,
    "csv": lambda text: list(csv.DictReader(io.StringIO(text))),
    "json": json.loads,
    "jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
    "sql": from_sql,
}


@pytest.mark.parametrize("name", READERS)
def test_records_parse_in_every_format(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (*LINK, "--order", "random", "--offset", "16", "--pages", "small", "-o", name)
    records = READERS[name](run(capsys, *flags))
    link = ["gather", "gather+copy", "copy-rows", "zero-copy"]
    assert [r["test"] for r in records] == ["job", "op", "copy", "copy-cached", *link, *link]
    assert [r["kind"] for r in records] == ["measured"] * 4 + (["measured"] + ["modelled"] * 3) * 2
    if name != "md":
        assert [int(r["row_bytes"]) for r in records] == [0, 0, 4096, 4096, *[32] * 4, *[136] * 4]
        assert all(r["cpu_info"] and r["build_commit"] and r["system"] for r in records)
        assert all(float(r["median_ns"]) > 0 for r in records)
    if name == "json":
        check_numbers(records)


def check_numbers(records: list[dict[str, Any]]) -> None:
    for r in records:
        if r["kind"] == "modelled":
            assert (r["verified_bytes"], r["n_loops"], r["link_gbps"], r["link_latency_us"]) == (0, 0, 50, 2)
            assert r["model"]
            continue
        assert (r["verified_bytes"], r["model"], r["link_gbps"]) == (r["n_bytes"], "", 0)
        assert len(r["samples_ns"]) == 5
        assert r["min_ns"] <= r["median_ns"] == sorted(r["samples_ns"])[2]
        assert r["cv"] == pytest.approx(np.std(r["samples_ns"], ddof=1) / np.mean(r["samples_ns"]), abs=1e-3)
        assert r["median_gbps"] == pytest.approx(r["n_bytes"] / r["median_ns"], abs=1e-3)
    gather, one_copy, copy_rows, zero_copy = records[-4:]  # 7 rows of 136 bytes, 16 bytes off
    assert one_copy["median_ns"] == pytest.approx(gather["median_ns"] + 2000 + 952 / 50, abs=0.2)
    assert copy_rows["median_ns"] == pytest.approx(7 * (2000 + 136 / 50), abs=0.2)
    assert zero_copy["median_ns"] == pytest.approx(2000 + 7 * 64 * lines_per_row(136, 16) / 50, abs=0.2)


def test_lines_that_rows_touch() -> None:
    for row_bytes, offset in ((64, 0), (64, 16), (32, 0), (32, 16), (128, 0), (136, 8)):
        starts = offset + row_bytes * np.arange(64)
        lines = (starts + row_bytes - 1) // 64 - starts // 64 + 1
        assert lines_per_row(row_bytes, offset) == lines.mean()


def test_shown_sizes_and_times() -> None:
    sizes = [shown_bytes(n) for n in (0, 48, 1024, 1 << 20, 3 << 30, 1025)]
    assert sizes == ["0 B", "48 B", "1 KiB", "1 MiB", "3 GiB", "1025 B"]
    times = [shown_time(ns) for ns in (12.34, 1500, 2.5e6, 3e9)]
    assert times == ["12.34 ns", "1.5 us", "2.5 ms", "3 s"]


def damaged(place: int) -> None:
    """Verifies a copy of 256 bytes of which one, or one behind them, is wrong."""
    memory = HostMemory("small", 1 << 16, 1 << 16)
    operation = transfer_timing._copy(memory, memory.source[4096 : 4096 + 256])
    out = aligned(256 + SLACK)
    out[:256], out[256:] = copy_bytes_ref(memory.source[4096 : 4096 + 256]), POISON
    out[place] ^= 1
    transfer_timing.verify(Case("copy", 1, 256, Setting("", 0, "small", 1)), operation, out)


@pytest.mark.parametrize(
    ("place", "says"),
    [(0, "wrong"), (255, "wrong"), (256, "behind"), (256 + SLACK - 1, "behind")],
)
def test_one_wrong_byte_is_found(place: int, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        damaged(place)


def test_wrong_bytes_end_the_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_timing, "gather_rows_ref", lambda rows, ids: rows[ids] ^ 1)
    assert transfer.main([*SMALL, "-o", "jsonl"]) == 1
    printed = capsys.readouterr()
    assert [json.loads(line)["test"] for line in printed.out.splitlines()][-1] == "copy-cached"
    assert re.fullmatch(r"yakvrt: error: gather of 7 x 32 bytes wrote wrong bytes [^\n]+\n", printed.err)


def test_source_words_differ_and_pages_are_as_asked() -> None:
    small, huge = (HostMemory(pages, 8 << 20, 4096) for pages in ("small", "huge"))
    words = small.source[: 8 << 20].view(np.uint64)
    assert len(np.unique(words)) == len(words)
    np.testing.assert_array_equal(small.source, huge.source)
    assert small.huge_bytes == 0
    if machine_facts().huge_pages in ("madvise", "always"):
        assert huge.huge_bytes > 0


def test_more_memory_than_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert transfer.main(["--quick", "--pool", "900G"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"yakvrt: error: a source of 900.00 GiB [^\n]+ lower --pool[^\n]+\n", printed.err)


def test_bad_input_is_one_sentence() -> None:
    assert "none of job, op" in sentence(yakvrt("--test", "nvlink", verb="transfer"), 2)
    assert "is not cpu, cuda or cuda:N" in sentence(yakvrt("--device", "gpu", verb="transfer"), 2)
    with open("/dev/full", "wb") as full:
        code, _, err = yakvrt(*SMALL, verb="transfer", stdout=full)
    assert code == 1
    assert re.fullmatch(r"yakvrt: error: No space left on device[^\n]*\n", err)


def test_plot_needs_matplotlib_and_a_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for directory in (file, file / "below"):
        assert transfer.main([*SMALL, "--plot", str(directory)]) == 1
        assert re.fullmatch(r"yakvrt: error: [^\n]*file[^\n]*\n", capsys.readouterr().err)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert transfer.main([*SMALL, "--plot", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"yakvrt: error: [^\n]*pip install 'yakvrt\[plot\]'\n", printed.err)


def test_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "new" / "plots"
    assert transfer.main([*SMALL, *LINK, "-o", "csv", "--plot", str(directory)]) == 0
    names = [f"transfer-{name}.{kind}" for name in ("copy", "map", "rows") for kind in ("png", "svg")]
    assert sorted(path.name for path in directory.iterdir()) == names
    for path in directory.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
    assert capsys.readouterr().err.count("wrote ") == 6


def test_help_names_the_tests(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        transfer.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "copy-cached: the same piece" in shown
    assert isinstance(build_parser().parse_args([]), argparse.Namespace)


def test_ctrl_c_keeps_what_was_measured() -> None:
    flags = ["--pool", "64M", "-o", "json", "--test", "copy,gather", "-r", "50"]
    command = [sys.executable, "-m", "yakvrt", "transfer", *flags]
    with subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        head = process.stdout.readline() + process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, b"yakvrt: interrupted\n")
    records = json.loads(head + rest)
    assert records
    assert all(record["verified_bytes"] == record["n_bytes"] for record in records)


def test_one_kind_of_memory_is_held_at_a_time() -> None:
    flags = ["--quick", "--pool", "256M", "--test", "copy", "--size", "4K", "-t", "1", "-r", "5"]
    script = (
        "import sys\nfrom yakvrt import terminal\nfrom yakvrt.transfer import verb as transfer\n"
        f"transfer.main({flags})\nprint(terminal.peak_memory_bytes(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.count("| copy") == 2
    assert int(done.stderr) < 1.75 * (256 << 20)
