"""Whole tiny models on the CUDA backend, over the fake driver and the emulator, against golden logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_gpu import FakeGpu
from tiny_device_model import exact_steps, rounded_steps

from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device import Device


@pytest.fixture
def backend(gpu: FakeGpu, fake_cubins: Path) -> Iterator[CudaBackend]:
    opened = CudaBackend(Device(), fake_cubins)
    yield opened
    opened.close()
    assert not gpu.failures
    assert not gpu.device


@pytest.mark.parametrize("family", ["llama3", "qwen3-moe"])
def test_exact_steps_give_the_golden_logits(backend: CudaBackend, family: str) -> None:
    exact_steps(backend, family)


def test_tensor_cores_give_nearly_the_golden_logits(backend: CudaBackend) -> None:
    rounded_steps(backend, "llama3")
