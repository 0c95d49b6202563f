"""Old directories of compiled kernels go; those in use stay, whatever their age says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from yakvrt.cpu.kernel_cache import KernelCache, default_directory
from yakvrt.kernel_build.directory import NEWEST_KEPT, hold, prune
from yakvrt.kernel_build.files import making, read_object
from yakvrt.kernel_build.spec import kernel

DAY = 86400


def make(parent: Path, name: str, days: float) -> Path:
    directory = parent / name
    directory.mkdir()
    (directory / "kernel.o").write_bytes(b"code")
    then = time.time() - days * DAY
    os.utime(directory, (then, then))
    return directory


def left(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_old_ones_go(tmp_path: Path) -> None:
    for name, days in {"month": 31, "week": 7, "today": 0.5, "own": 40}.items():
        make(tmp_path, name, days)
    prune(tmp_path / "own")
    assert left(tmp_path) == ["own", "today", "week"]


def test_of_many_the_newest_stay(tmp_path: Path) -> None:
    for i in range(NEWEST_KEPT + 3):
        make(tmp_path, f"d{i:02}", 2 + i)
    make(tmp_path, "own", 0)
    prune(tmp_path / "own")
    assert left(tmp_path) == [*(f"d{i:02}" for i in range(NEWEST_KEPT)), "own"]


def test_many_of_today_stay(tmp_path: Path) -> None:
    """A test run for several CPUs makes many at once."""
    for i in range(30):
        make(tmp_path, f"d{i:02}", 0.1)
    prune(tmp_path / "own")
    assert len(left(tmp_path)) == 30


def test_what_another_process_holds_stays(tmp_path: Path) -> None:
    held = tmp_path / "held"
    code = f"""
import sys, time
from pathlib import Path
from yakvrt.kernel_build.directory import hold
descriptor = hold(Path({str(held)!r}))
print("held", flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    then = time.time() - 100 * DAY
    os.utime(held, (then, then))
    prune(tmp_path / "own")
    assert held.is_dir()
    child.communicate("")
    prune(tmp_path / "own")
    assert not held.exists()


def test_holding_makes_and_marks(tmp_path: Path) -> None:
    old = make(tmp_path, "old", 50)
    os.close(hold(old))
    prune(tmp_path / "own")
    assert left(tmp_path) == ["old"]
    descriptor = hold(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    os.close(descriptor)


def test_a_cache_keeps_its_directory_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YAKVRT_CACHE", str(tmp_path))
    (tmp_path / "kernels").mkdir()
    make(tmp_path / "kernels", "ancient", 90)
    cache = KernelCache()
    own = default_directory()
    assert left(tmp_path / "kernels") == [own.name]
    then = time.time() - 90 * DAY
    os.utime(own, (then, then))
    prune(tmp_path / "kernels" / "another")
    spec = kernel("timestamp", "timestamp_cpu")
    assert cache.load([spec])[spec]
    assert (own / f"{spec.symbol}.o").is_file()
    del cache
    os.utime(own, (then, then))
    prune(tmp_path / "kernels" / "another")
    assert left(tmp_path / "kernels") == []


def test_what_one_process_makes_others_find_made(tmp_path: Path) -> None:
    path = tmp_path / "kernel.o"
    code = f"""
import sys
from pathlib import Path
from yakvrt.kernel_build.files import making, write_object
with making(Path({str(path)!r})):
    print("making", flush=True)
    sys.stdin.read()
    write_object(Path({str(path)!r}), b"code")
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "making\n"

    def found() -> bytes | None:
        with making(path):
            return read_object(path)

    with making(tmp_path / "another.o"), ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(found)
        time.sleep(0.05)
        assert not waiting.done()
        child.communicate("")
        assert waiting.result() == b"code"
