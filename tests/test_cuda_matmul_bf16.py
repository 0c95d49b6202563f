"""Prefill matmul on a GPU's tensor cores, emulated, against numpy."""

from __future__ import annotations

import pytest
from cuda_cases.matmul import prefill_matmul
from cuda_emulated_ops import emulated
from cuda_kernel import solve

from yakvrt.kernels.device_layout import DEVICE_LAYOUTS, TENSOR_CORE_FORMATS
from yakvrt.kernels.matmul import ADD, GATE, WRITE
from yakvrt.kernels.matmul_bf16_cuda import matmul_bf16_cuda


@pytest.mark.parametrize("name", TENSOR_CORE_FORMATS)
def test_every_format(name: str) -> None:
    """Of some more steps than copies under way; fewer outputs than a block has."""
    n_cols = 160 if name in ("BF16", "Q8_0") else max(64, DEVICE_LAYOUTS[name].column_multiple)
    solve(prefill_matmul(name, 16, 5, 100, n_cols))


@pytest.mark.parametrize(
    ("name", "tile", "batch", "n_outputs", "n_cols", "mode"),
    [
        ("Q8_0", 128, 129, 1, 32, WRITE),
        ("BF16", 64, 63, 128, 64, ADD),
        ("BF16", 32, 31, 131, 96, GATE),
        ("Q8_0", 32, 33, 70, 64, GATE),
        ("BF16", 128, 97, 128, 96, ADD),
    ],
)
def test_every_tile(name: str, tile: int, batch: int, n_outputs: int, n_cols: int, mode: int) -> None:
    solve(prefill_matmul(name, tile, batch, n_outputs, n_cols, mode, with_bias=True))


@pytest.mark.parametrize(
    ("parameters", "told"),
    [(("Q2_K", 128), "Q8_0"), (("F32", 128), "F16"), (("Q8_0", 48), "16, 32, 64, 128")],
)
def test_what_has_no_kernel_is_refused_with_what_has_one(parameters: tuple[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        matmul_bf16_cuda(emulated, *parameters, False)
