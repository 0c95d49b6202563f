"""Whole tiny models on the CUDA backend, over the fake driver and the emulator, against golden logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeGpu
from tiny_device_model import exact_steps, rounded_steps

from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device import Device
from yakvrt.trace_log import TraceLog
from yakvrt.trace_records import NO_LAYER, RECORD


@pytest.fixture
def backend(gpu: FakeGpu, fake_cubins: Path) -> Iterator[CudaBackend]:
    opened = CudaBackend(Device(), fake_cubins)
    yield opened
    opened.close()
    assert not gpu.failures
    assert not gpu.device


@pytest.mark.parametrize(("family", "traced"), [("llama3", True), ("qwen3-moe", False)])
def test_exact_steps_give_the_golden_logits(
    backend: CudaBackend, family: str, traced: bool, tmp_path: Path
) -> None:
    """Also with events between the stages."""
    log = TraceLog(tmp_path)
    log.begin_process(family)
    if traced:
        backend.trace(log)
    exact_steps(backend, family)
    records = np.concatenate([np.zeros(0, RECORD), *log.records()])
    log.close()
    layers = [(name, i) for i in range(4) for name in ("qkv", "attend", "attn_output", "mlp")]
    steps = [("embed", NO_LAYER), *layers, ("logits", NO_LAYER)] * 2
    assert [log.labels[i][1:4:2] for i in records["label"]] == (steps if traced else [])
    assert (records["begin_ns"] <= records["end_ns"]).all()
    assert (records["end_ns"][:-1] <= records["begin_ns"][1:]).all()


def test_tensor_cores_give_nearly_the_golden_logits(backend: CudaBackend) -> None:
    rounded_steps(backend, "llama3")
