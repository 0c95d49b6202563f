"""Evaluations on a GPU, on the fake driver: the CPU's readings, and a sample gives back what it took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from fake_gpu import FakeGpu
from golden_values import tiny_cases, tiny_dir

import yakvrt
from yakvrt.eval.method_specs import method_specs
from yakvrt.eval.own_engine import OwnEngine, SampleTokens
from yakvrt.eval.sample import Sample

LABEL = "oracle:sparse_budget=2"


def readings(engine: yakvrt.Engine, monkeypatch: pytest.MonkeyPatch) -> dict[str, Mapping[str, Any]]:
    case = tiny_cases("llama3")[1]
    own = OwnEngine(engine, "f32", 1, 0, 64)
    monkeypatch.setattr(own, "tokens", lambda sample: SampleTokens(case.ids[:5], case.ids[5:6], 0))
    found = own.readings(Sample("s", "", "", 0), method_specs([LABEL], []), lambda what, share: None)
    return {spec.label: values for spec, values in found}


def test_a_sample_on_a_gpu(gpu: FakeGpu, compiled_on_demand: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(**how: Any) -> yakvrt.Engine:
        return yakvrt.load(str(tiny_dir("llama3")), ctx_size=16, cache_type="f32", **how)

    with load() as engine:
        truth = readings(engine, monkeypatch)
    with load(device="cuda", ubatch_size=4) as engine:
        held = gpu.held
        found = readings(engine, monkeypatch)
        assert gpu.held == held
    assert not gpu.failures
    assert not gpu.held
    for label in ("full", LABEL):
        assert found[label]["nll"] == pytest.approx(truth[label]["nll"], rel=1e-2)
        assert found[label]["rows_read"] == truth[label]["rows_read"]
    assert found[LABEL]["kl_mean"] < 1e-6
