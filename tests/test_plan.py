"""The plan verb: what it prints is what loading takes."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from golden_values import tiny_dir

import yakvrt
from yakvrt.calibration import Setting
from yakvrt.kvcache.contract import StepBytes
from yakvrt.model_source import open_model
from yakvrt.modelled_step import weight_reads
from yakvrt.plan import main
from yakvrt.prediction import predict
from yakvrt.step_times import StepTimes
from yakvrt.tuning import LinkRates, load, save

TIMES = StepTimes(1, (16,), (2.0,), (1,), (2.0,), (2.0,))


def plan(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    code = main(["-m", str(tiny_dir("qwen3")), *flags])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("kv", ["full", "yakv", "yakv-paper", "shadowkv"])
def test_the_plan_is_what_the_method_reports(kv: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = plan(capsys, "--kv", kv, "-c", "2000", "--slots", "2", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["fits"]
    slot = sum(record["slot_device_bytes"].values()) + sum(record["slot_host_bytes"].values())
    path = str(tiny_dir("qwen3"))
    with yakvrt.load(path, kv=kv, ctx_size=2000, n_slots=2, threads=1) as engine, engine.session() as session:
        held = session.kv["bytes"]
    transient = sum(n for what, n in record["prompt_bytes"].items() if what != "hidden states")
    assert held in (2 * slot, 2 * slot + transient)
    assert record["places"][0]["total_bytes"] > 2 * slot


def test_text_names_every_pool(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = plan(capsys, "--kv", "yakv", "-c", "2000")
    assert code == 0
    for word in (
        "weights",
        "device: selectors",
        "host: codes",
        "exact rows of one layer",
        "in every step: rows from the host",
        "total of memory",
        "fits; ",
    ):
        assert word in out


def test_a_context_that_cannot_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = plan(capsys, "-c", "2000000000")
    assert code == 1
    assert "DOES NOT FIT; the largest context that fits is" in out


def test_wrong_parameters_are_refused_before_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", str(tiny_dir("qwen3")), "--kv", "yakv", "--kv-args", "k_bits=5"]) == 1
    assert "k_bits=5 is not known" in capsys.readouterr().err


@pytest.fixture
def _own_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yakvrt.tuning.cache_directory", lambda: tmp_path)


@pytest.mark.usefixtures("_own_tuning")
def test_a_step_is_predicted_once_it_was_timed(capsys: pytest.CaptureFixture[str]) -> None:
    asked = "-c", "600", "-t", "1", "--slots", "2"
    _, text = plan(capsys, *asked)
    assert "how long a step takes is not known here: --calibrate" in text
    code, out = plan(capsys, *asked, "--json", "--calibrate")
    found = json.loads(out)["prediction"]
    assert code == 0
    told = [found[name] for name in ("how", "n_timed_layers", "n_threads", "deepest_timed")]
    assert told == ["timed", 4, 1, 600]
    assert found["tokens_per_s"] == pytest.approx(2e3 / found["step_ms"], rel=0.01)
    _, out = plan(capsys, *asked, "--json")  # from the file
    assert json.loads(out)["prediction"] == found
    _, text = plan(capsys, *asked)
    assert f"a step takes {found['step_ms']:.2f} ms" in text
    # more slots, another type or another method were not timed
    for other in (("--slots", "3"), ("-ctk", "f32"), ("--kv", "yakv")):
        _, out = plan(capsys, *asked, *other, "--json")
        assert json.loads(out)["prediction"] is None, other
    name = json.loads(Path(found["tuning_file"]).read_text(encoding="utf-8"))["device"]
    steps = load(name)
    assert steps is not None
    (entry,) = steps["decode"]["steps"].values()
    save(name, "decode", {"steps": {key: {**entry, "depth_ms": []} for key in steps["decode"]["steps"]}})
    assert main(["-m", str(tiny_dir("qwen3")), *asked, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["prediction"] is None
    assert "depth_ms is no list of 1 to 64 numbers; calibrate again" in captured.err


@pytest.mark.usefixtures("_own_tuning")
@pytest.mark.parametrize("free", [600_000_000, 1_000_000])
def test_what_does_not_fit_is_timed_as_deep_as_it_fits(
    free: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yakvrt.cpu_device.available_memory", lambda: free)
    monkeypatch.setattr("yakvrt.plan.MAX_SLOTS", 4)
    timed = []
    monkeypatch.setattr("yakvrt.calibration.time_steps", lambda *given: timed.append(given[2]) or TIMES)
    assert main(["-m", str(tiny_dir("qwen3")), "-c", "100000000", "--calibrate"]) == 1
    captured = capsys.readouterr()
    if free == 1_000_000:
        assert "the weights take" in captured.err
        assert not timed
    else:
        assert timed[0].n_slots == (1,)
        (largest,) = re.findall(r"the largest context that fits is (\d+) tokens", captured.out)
        assert sum(timed[0].n_tokens) <= int(largest) <= 3 * timed[0].n_tokens[-1] + 2


def test_the_slots_that_fit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yakvrt.cpu_device.available_memory", lambda: 600_000_000)
    _, out = plan(capsys, "-c", "100000", "--json")
    most = json.loads(out)["largest_slots"]
    assert 1 < most < 4096
    assert plan(capsys, "-c", "100000", "--slots", str(most))[0] == 0
    assert plan(capsys, "-c", "100000", "--slots", str(most + 1))[0] == 1


def test_a_hub_model_is_planned_from_its_configuration_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_dir("qwen3") / "config.json"
    monkeypatch.setattr("yakvrt.hub_repo.config_file", lambda repo, offline: config)
    assert main(["-m", "user/not-here", "--offline", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["model"] == "user/not-here"
    assert "user/not-here is not on this machine: its config.json is planned" in captured.err


@pytest.mark.usefixtures("_own_tuning")
def test_a_gpu_that_timed_nothing_is_modelled(capsys: pytest.CaptureFixture[str]) -> None:
    rates = {"gather_gbps": 0.5, "memory_gbps": 100}
    every = {field.name: 1.0 for field in fields(LinkRates)} | rates
    setting = Setting("GPU", "key", 1)
    with open_model(str(tiny_dir("qwen3")), offline=True) as source:
        given = setting, source, "auto", StepBytes(10_000_000, 1_000_000), 600, 2
        assert predict(*given, on_gpu=True, host_rows=True) is None
        save("GPU", "link", every)
        found = predict(*given, on_gpu=True, host_rows=True)
        assert found is not None
        assert (found["how"], found["link_ms"], found["step_ms"]) == ("modelled", 4.0, 4.0)
        assert found["tokens_per_s"] == 500
        weights_ms = weight_reads(source.config, source.tensors, "auto").dense / 1e8
        assert found["device_ms"] == pytest.approx(0.2 + weights_ms, abs=1e-3)
        found = predict(*given, on_gpu=True, host_rows=False)
        assert found is not None
        assert (found["link_ms"], found["step_ms"]) == (0, pytest.approx(0.22 + weights_ms, abs=1e-3))
        save("GPU", "link", {**every, "gather_gbps": "fast"})
        assert predict(*given, on_gpu=True, host_rows=True) is None
    assert "gather_gbps is 'fast', not a number; measure again" in capsys.readouterr().err
