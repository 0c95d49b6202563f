"""The plan verb: what it prints is what loading takes."""

from __future__ import annotations

import json

import pytest
from golden_values import tiny_dir

import yakvrt
from yakvrt.plan import main


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
