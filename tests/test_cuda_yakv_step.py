"""A whole decode step of YAKV on the CUDA backend, over the fake driver and the emulator, against numpy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_gpu import FakeGpu
from yakv_device_step import SHAPE, yakv_step

from yakvrt.cuda.backend import CudaBackend
from yakvrt.cuda.device import Device
from yakvrt.cuda.yakv_pools import check_yakv


@pytest.fixture
def backend(gpu: FakeGpu, fake_cubins: Path) -> Iterator[CudaBackend]:
    made = CudaBackend(Device(), fake_cubins)
    yield made
    made.close()
    assert not gpu.failures


@pytest.mark.parametrize(
    ("k_format", "on_host", "tail"),
    [("r3", False, True), ("r3", True, False), ("q4", False, True), ("q4", True, False)],
)
def test_step(backend: CudaBackend, k_format: str, on_host: bool, tail: bool) -> None:
    assert yakv_step(backend, k_format, on_host, tail) <= 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"k_format": "q3"}, "take k_bits=r3 or 4, v_bits=4"),
        ({"v_format": "q8"}, "take k_bits=r3 or 4, v_bits=4"),
        ({"selector": "1.5bit"}, "take selector=2bit"),
        ({"rule": "max"}, "take rule=sum"),
        ({"kind": "f32"}, "take -ctk f16 or bf16"),
    ],
)
def test_what_has_no_kernels_is_refused(changed: dict[str, str], told: str) -> None:
    check_yakv(SHAPE)
    with pytest.raises(ValueError, match=told):
        check_yakv(replace(SHAPE, **changed))  # type: ignore[arg-type]
