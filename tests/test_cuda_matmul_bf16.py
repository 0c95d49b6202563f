"""Prefill matmul on a GPU's tensor cores, emulated, against numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cuda_emulated_ops import emulated
from cuda_kernel import blocks, count, emulated_kernel, poisoned, run_kernel
from device_matrix import device_matrix, normal

from yakvrt.kernels.device_layout import DEVICE_LAYOUTS, TENSOR_CORE_FORMATS
from yakvrt.kernels.matmul import ADD, GATE, WRITE, matmul_ref
from yakvrt.kernels.matmul_bf16 import matmul_bf16_ref
from yakvrt.kernels.matmul_bf16_cuda import OUTPUTS, matmul_bf16_cuda
from yakvrt.kernels.swiglu import swiglu_ref


def check(name: str, tile: int, batch: int, n_outputs: int, n_cols: int, mode: int, with_bias: bool) -> None:
    weights, planes = device_matrix(name, n_outputs, n_cols)
    x, bias = normal(batch, n_cols), normal(n_outputs) if with_bias else None
    out = poisoned(batch + 1, n_outputs + 1)
    if mode != WRITE:
        out[:batch, :n_outputs] = normal(batch, n_outputs)
    before = out[:batch, :n_outputs].copy()
    kernel = emulated_kernel("matmul_bf16_cuda", "matmul_bf16_cuda", name, tile, False)
    grid = (blocks(batch, tile) + 1, blocks(n_outputs, OUTPUTS))
    words = x.astype(ml_dtypes.bfloat16).view(np.uint32)
    shape = (n_outputs, n_cols, words, bias, with_bias, mode, count(batch), None, None, 0)
    run_kernel(kernel, grid, [out], out, out.shape[1], *planes, *shape)
    product = matmul_bf16_ref(weights, x, bias)
    expected = {WRITE: product, ADD: product + before, GATE: swiglu_ref(before, product)}[mode]
    scale = matmul_ref(np.abs(weights), np.abs(x)).max() + 1
    np.testing.assert_allclose(out[:batch, :n_outputs] / scale, expected / scale, rtol=0, atol=2e-6)
    assert np.isnan(out[:batch, n_outputs:]).all()
    assert np.isnan(out[batch:]).all()


@pytest.mark.parametrize("name", TENSOR_CORE_FORMATS)
def test_every_format(name: str) -> None:
    """Of some more steps than copies under way; fewer outputs than a block has."""
    n_cols = 160 if name in ("BF16", "Q8_0") else max(64, DEVICE_LAYOUTS[name].column_multiple)
    check(name, 16, 5, 100, n_cols, WRITE, with_bias=False)


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
    check(name, tile, batch, n_outputs, n_cols, mode, with_bias=True)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [(("Q2_K", 128), "Q8_0"), (("F32", 128), "F16"), (("Q8_0", 48), "16, 32, 64, 128")],
)
def test_what_has_no_kernel_is_refused_with_what_has_one(parameters: tuple[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        matmul_bf16_cuda(emulated, *parameters, False)
