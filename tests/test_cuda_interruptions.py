"""Ctrl-C, a lost GPU and memory that runs out, on the fake driver: what is told, and what is given back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import pytest
from fake_gpu import FakeGpu
from interruption import Interruption
from tiny_device_model import WIDE_CONFIG

import yakvrt
from yakvrt import generate
from yakvrt.cuda.driver import DeviceLost

YAKV: dict[str, Any] = {"kv": "yakv", "kv_device": "cpu", "ctx_size": 192, "ubatch_size": 80}
PROMPT = [1] * 134  # a block leaves the window
# while these run, nobody but the driver's context knows of the memory
TAKES_OR_GIVES = {"cuMemAlloc", "cuMemHostAlloc", "cuMemFree", "cuMemFreeHost", "cuMemHostUnregister"}


@pytest.fixture
def model(gpu: FakeGpu, compiled_on_demand: None, tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(WIDE_CONFIG))
    return str(tmp_path)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, model: str) -> str:
    """A model on a GPU whose kernels do nothing, and whose memory is full of zeros."""
    monkeypatch.setattr(fake_gpu, "launch", lambda *given: None)
    monkeypatch.setattr(fake_gpu, "POISON", 0)
    return model


def load(model: str, **how: Any) -> yakvrt.Engine:
    return yakvrt.load(model, load_format="dummy", device="cuda", **how)


def use(model: str) -> None:
    """Loads, reads a prompt and decodes, the second time from a graph."""
    with load(model, **YAKV) as engine, engine.session() as session:
        session.prefill(PROMPT)
        session.decode(3)
        session.decode(4)


def test_ctrl_c_anywhere(gpu: FakeGpu, idle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that was on its way goes with the driver's context, all else is given back one by one."""
    whole = Interruption(monkeypatch, 0)
    use(idle)
    n_calls = len(whole.asked)
    assert n_calls > 500
    for i in range(1, n_calls, 3):
        gpu.calls.clear()
        seen = Interruption(monkeypatch, i, after=i % 2 == 0)
        with pytest.raises(KeyboardInterrupt):
            use(idle)
        at = seen.asked[i - 1]
        assert sum(gpu.held.values()) <= (at in TAKES_OR_GIVES), f"interrupted at call {i}, {at}"
        assert gpu.calls.count("cuDevicePrimaryCtxRelease") == gpu.calls.count("cuDevicePrimaryCtxRetain")
        for kind in (gpu.device, gpu.pinned):
            kind.clear()
    assert not gpu.failures


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("name", ["cuStreamWaitEvent", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_ctrl_c_while_a_graph_is_captured(
    gpu: FakeGpu, idle: str, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    """Also where a second stream has not joined yet; the engine goes on."""
    with load(idle, **YAKV) as engine, engine.session() as session:
        session.prefill(PROMPT)
        seen = Interruption(monkeypatch, 1, name, after=after)
        with pytest.raises(KeyboardInterrupt):
            session.decode(3)
        assert seen.happened
        assert len(session.ids) == len(PROMPT)
        session.decode(3)
        session.decode(4)
    assert not gpu.held
    assert not gpu.failures


@pytest.mark.parametrize(("name", "n"), [("cuLaunchKernel", 6), ("cuGraphLaunch", 3)])
def test_what_comes_after_ctrl_c_is_as_if_nothing_had_been(
    gpu: FakeGpu, model: str, monkeypatch: pytest.MonkeyPatch, name: str, n: int
) -> None:
    """A prompt in two chunks is interrupted and read again."""
    with load(model, ctx_size=32, ubatch_size=2) as engine:
        found = []
        for interrupted in (True, False):
            with engine.session() as session:
                if interrupted:
                    seen = Interruption(monkeypatch, n, name)
                    with pytest.raises(KeyboardInterrupt):
                        session.prefill([5, 6, 7])
                    assert seen.happened
                    assert not session.ids
                found.append(session.prefill([5, 6, 7]))
        np.testing.assert_array_equal(*found)
        assert not np.isnan(found[0]).any()
    assert not gpu.held
    assert not gpu.failures


def command(model: str) -> int:
    argv = ["-m", model, "--load-format", "dummy", "-dev", "cuda", "--kv", "yakv", "--kv-device", "cpu"]
    ids = ",".join(map(str, PROMPT))
    return generate.main([*argv, "-c", "192", "-ub", "80", "-n", "4", "--prompt-ids", ids, "--json"])


@pytest.mark.parametrize(
    ("name", "n", "told"),
    [
        ("cuMemcpyHtoDAsync", 5, "yakvrt: interrupted\n"),  # weights
        ("cuMemHostRegister", 1, "yakvrt: interrupted\n"),
        ("cuGraphLaunch", 2, ""),  # the prompt
        ("cuGraphLaunch", 8, ""),  # a token
    ],
)
def test_ctrl_c_ends_the_command(
    gpu: FakeGpu,
    idle: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    n: int,
    told: str,
) -> None:
    """As on the CPU: while it loads with a sentence, later with what there is of the answer."""
    seen = Interruption(monkeypatch, n, name)
    assert command(idle) == 130
    assert seen.happened
    out, err = capsys.readouterr()
    assert err == told
    assert bool(out) != bool(told)
    if out:
        assert json.loads(out)["finish_reason"] is None
    assert not gpu.held


ILLEGAL_ADDRESS, OUT_OF_MEMORY = 700, 2


def lose(gpu: FakeGpu) -> None:
    gpu.faults = dict.fromkeys(("cuGraphLaunch", "cuLaunchKernel", "cuMemcpyDtoHAsync"), ILLEGAL_ADDRESS)


def lose_all(gpu: FakeGpu) -> None:
    """Nothing can be given back but by the end of the context."""
    gpu.lost = ILLEGAL_ADDRESS


def fill_device(gpu: FakeGpu) -> None:
    gpu.memory_bytes = sum(memory.nbytes for memory in gpu.device.values())


def forbid_pinning(gpu: FakeGpu) -> None:
    gpu.pinnable_bytes = 0


LOST = "a kernel reached memory that is not its own; the GPU is lost to this process, which has to be started"


@pytest.mark.parametrize(
    ("name", "n", "trouble", "told"),
    [
        (
            "cuMemAlloc",
            50,
            fill_device,
            "MB of device memory were asked for and 0 MB are free: take a",
        ),
        (
            "cuMemAlloc",
            3,
            forbid_pinning,
            "of host memory for KV rows could be pinned (the NVIDIA driver",
        ),
        ("cuGraphLaunch", 2, lose, LOST),
        ("cuGraphLaunch", 8, lose, LOST),
        ("cuGraphLaunch", 8, lose_all, LOST),
    ],
)
def test_trouble_ends_the_command(
    gpu: FakeGpu,
    idle: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    n: int,
    trouble: Callable[[FakeGpu], None],
    told: str,
) -> None:
    Interruption(monkeypatch, n, name, happens=lambda: trouble(gpu), after=False)
    assert command(idle) == 1
    out, err = capsys.readouterr()
    assert not out
    assert told in err
    assert err.startswith("yakvrt: error: ")
    assert err.count("\n") == 1
    assert gpu.calls[-1] == "cuDevicePrimaryCtxRelease"
    assert bool(gpu.held) == (trouble is lose_all)


def test_a_step_on_a_lost_gpu(gpu: FakeGpu, idle: str) -> None:
    """Whoever goes on asks in vain, and is told so."""
    with load(idle, **YAKV) as engine, engine.session() as session:
        session.prefill(PROMPT)
        lose_all(gpu)
        for _ in range(2):
            with pytest.raises(DeviceLost):
                session.decode(3)
