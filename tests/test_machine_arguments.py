"""The flags of CPUs, NUMA nodes and memory: what they mean, refuse, and that they reach the threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_gguf

import yakvrt
from yakvrt import generate
from yakvrt.cli_parsing import parse
from yakvrt.cpu.affinity import Affinity
from yakvrt.machine_arguments import machine_keywords


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_gguf("qwen2", tmp_path_factory.mktemp("machine") / "model.gguf"))


def keywords(*argv: str) -> dict[str, object]:
    return machine_keywords(parse(generate.build_parser(), argv))


def test_defaults_ask_for_nothing() -> None:
    assert keywords() == {"affinity": Affinity(), "mlock": False, "tile_cache": False, "mmap": True}


def test_masks_and_ranges_add_up() -> None:
    assert keywords("-C", "0x15", "-Cr", "8-9")["affinity"] == Affinity(cpus=(0, 2, 4, 8, 9))
    assert keywords("--cpu-mask", "F0")["affinity"] == Affinity(cpus=(4, 5, 6, 7))
    assert keywords("--cpu-range", "3-3", "--cpu-strict", "1")["affinity"] == Affinity((3,), strict=True)
    assert keywords("--numa", "isolate")["affinity"] == Affinity(numa="isolate")
    assert keywords("--no-mmap", "--mlock", "--tile-cache") == {
        "affinity": Affinity(),
        "mlock": True,
        "tile_cache": True,
        "mmap": False,
    }


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YAKVRT_CPU_MASK", "3")
    monkeypatch.setenv("YAKVRT_NO_MMAP", "1")
    assert keywords()["affinity"] == Affinity(cpus=(0, 1))
    assert keywords()["mmap"] is False


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        *(("-C", text) for text in ("0", "", "0x", "g", "-1", "1" * 20000)),
        *(("-Cr", text) for text in ("3-1", "3", "a-b", "0-99999999", "1-2-3", "-3")),
        ("--cpu-strict", "2"),
        ("--numa", "mirror"),
    ],
)
def test_nonsense_is_refused(flag: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        keywords(f"{flag}={text}" if flag.startswith("--") else f"{flag}{text}")
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("yakvrt: error: ")
    assert said.count("\n") == 1
    assert len(said) < 300


def test_threads_run_where_they_are_told(model: str) -> None:
    """The workers' affinity as the system has it; the caller's is back after each step."""
    before = os.sched_getaffinity(0)
    last = max(before)
    with yakvrt.load(model, ctx_size=64, threads=2, affinity=Affinity(cpus=(last,))) as engine:
        assert engine.n_threads == 1  # more would take turns
    with yakvrt.load(model, ctx_size=64, threads=2) as engine, engine.session() as session:
        session.prefill([1, 2, 3])
        for worker in engine._backend.team._crew.threads:
            assert worker.native_id is not None
            assert os.sched_getaffinity(worker.native_id) <= before
    assert os.sched_getaffinity(0) == before


def test_more_threads_than_cpus_are_not_started(model: str) -> None:
    with yakvrt.load(model, ctx_size=64, threads=512) as engine:
        assert engine.n_threads <= len(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "yakvrt", "generate", "-m", model, "--prompt-ids", "1,2", "-n", "1"]
    done = subprocess.run([*command, "-t", "512", "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "note: -t 512 is more than the CPUs here; " in done.stderr


def test_what_the_machine_lacks_is_one_sentence(model: str) -> None:
    with pytest.raises(ValueError, match=r"^CPU 65000 is in --cpu-mask .* may use .*; name some of these$"):
        yakvrt.load(model, ctx_size=64, affinity=Affinity(cpus=(0, 65000)))
    strict = Affinity(strict=True)
    with pytest.raises(ValueError, match=r"^--cpu-strict 1 .*; lower --threads to \d+$"):
        yakvrt.load(model, ctx_size=64, threads=400, affinity=strict)


def test_numa_flags_change_no_result(model: str) -> None:
    results = []
    for numa in ("", "distribute", "isolate", "numactl"):
        engine = yakvrt.load(model, ctx_size=64, affinity=Affinity(numa=numa))
        with engine, engine.session() as session:
            results.append(session.prefill([1, 2, 3]).tobytes())
    assert len(set(results)) == 1


def test_bench_takes_them_too(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "yakvrt", "bench", "-m", model, "-p", "4", "-n", "2", "-r", "1"]
    done = subprocess.run(
        [*command, "--cpu-strict", "1", "-t", "1", "--mlock"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "tg2" in done.stdout
