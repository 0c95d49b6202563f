"""Decode matmul on a GPU, emulated, and its operands' forms, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulated_ops import emulated
from cuda_kernel import blocks, count, emulated_kernel, poisoned, run_kernel
from device_matrix import decoded, device_matrix, int8_activations, normal, stored_rows

from gguf_tools.dequantize import dequantize
from yakvrt.kernels.device_layout import DEVICE_LAYOUTS, device_planes_ref
from yakvrt.kernels.embed import embed_ref
from yakvrt.kernels.matmul import ADD, GATE, WRITE, matmul_ref
from yakvrt.kernels.matmul_cuda import ROWS_AT_ONCE, WARPS, matmul_cuda
from yakvrt.kernels.pack_activations import quantize_activations_ref
from yakvrt.kernels.swiglu import swiglu_ref

NAMES = list(DEVICE_LAYOUTS)


@pytest.mark.parametrize("name", NAMES)
def test_planes_hold_the_weights_and_no_more_bytes_than_they_need(name: str) -> None:
    rows = stored_rows(name, 3, 512)
    planes = device_planes_ref(name, rows, 512)
    np.testing.assert_array_equal(decoded(name, planes), dequantize(rows, name))
    n_bytes = planes.codes.nbytes + planes.high.nbytes + planes.scales.nbytes + planes.supers.nbytes
    assert n_bytes == 3 * DEVICE_LAYOUTS[name].row_bytes(512)
    assert n_bytes <= rows.nbytes * 1.03


@pytest.mark.parametrize("n_cols", [32, 608])
def test_quantize_activations(n_cols: int) -> None:
    x = normal(4, n_cols)
    x[1, :32] = 0
    x[2, 3] = -1000
    codes, terms = np.full((4, n_cols // 4), 7, np.uint32), poisoned(4, n_cols // 32, 2)
    kernel = emulated_kernel("pack_activations", "quantize_activations_cuda")
    run_kernel(kernel, (blocks(n_cols, 512), 4), [codes, terms], codes, terms, x, n_cols, count(3))
    expected, scales = quantize_activations_ref(x)
    np.testing.assert_array_equal(codes[:3], expected.view(np.uint32)[:3])
    np.testing.assert_array_equal(terms[:3, :, 0], scales[:3])
    np.testing.assert_array_equal(terms[:3], int8_activations(x)[1][:3])
    assert (codes[3] == 7).all()
    assert np.isnan(terms[3]).all()


@pytest.mark.parametrize("n_cols", [8, 1032])
def test_round_activations(n_cols: int) -> None:
    import ml_dtypes

    x = normal(3, n_cols)
    out = np.full((3, n_cols // 2), 7, np.uint32)
    kernel = emulated_kernel("pack_activations", "round_activations_cuda")
    run_kernel(kernel, (blocks(n_cols, 1024), 3), [out], out, x, n_cols, count(2))
    np.testing.assert_array_equal(out[:2], x[:2].astype(ml_dtypes.bfloat16).view(np.uint32))
    assert (out[2] == 7).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("n_tokens", "split", "batch", "mode", "n_outputs", "n_units"),
    [
        (1, 1, 1, WRITE, 18, 34),
        (1, 4, 1, ADD, 5, 24),
        (2, 2, 1, WRITE, 3, 8),
        (4, 4, 5, GATE, 7, 40),
        (8, 1, 7, ADD, 1, 8),
    ],
)
def test_matmul(
    name: str, n_tokens: int, split: int, batch: int, mode: int, n_outputs: int, n_units: int
) -> None:
    layout = DEVICE_LAYOUTS[name]
    n_cols = n_units * 32 // layout.column_multiple * layout.column_multiple
    weights, planes = device_matrix(name, n_outputs, n_cols)
    x, bias = normal(batch, n_cols), normal(n_outputs) if mode != WRITE or batch == 2 else None
    given, terms, used = (x, None, x) if layout.is_float else int8_activations(x)
    out = poisoned(batch + 1, n_outputs + 3)
    if mode != WRITE:
        out[:batch, :n_outputs] = normal(batch, n_outputs)
    before = out.copy()
    kernel = emulated_kernel("matmul_cuda", "matmul_cuda", name, n_tokens, split, False)
    grid = (blocks(n_outputs, ROWS_AT_ONCE * WARPS // split), blocks(batch, n_tokens) + 1)
    shape = (n_outputs, n_cols, given, terms, bias, bias is not None, mode, count(batch), None, None, 0)
    run_kernel(kernel, grid, [out], out, out.shape[1], *planes, *shape)
    product = matmul_ref(weights, used, bias)
    held = before[:batch, :n_outputs]
    expected = {WRITE: product, ADD: product + held, GATE: swiglu_ref(held, product)}[mode]
    scale = np.abs(matmul_ref(np.abs(weights), np.abs(used))).max() + 1
    np.testing.assert_allclose(out[:batch, :n_outputs] / scale, expected / scale, rtol=0, atol=1e-6)
    assert np.isnan(out[:batch, n_outputs:]).all()
    assert np.isnan(out[batch:]).all()


@pytest.mark.parametrize("name", [name for name in NAMES if not DEVICE_LAYOUTS[name].is_float])
def test_embed_planes(name: str) -> None:
    width = max(96, DEVICE_LAYOUTS[name].column_multiple * 9)
    weights, planes = device_matrix(name, 5, width)
    tokens, out = np.array([4, 0, 99]), poisoned(3, width)
    kernel = emulated_kernel("embed", "embed_planes_cuda", name)
    run_kernel(kernel, 3, [out], out, *planes, tokens, width, count(2))
    np.testing.assert_allclose(out[:2], embed_ref(weights, tokens[:2]), rtol=1e-6, atol=1e-6)
    assert np.isnan(out[2]).all()


def test_a_rows_sums_are_the_same_beside_others() -> None:
    _, planes = device_matrix("Q4_K", 4, 512)
    x, results = normal(2, 512), []
    codes, terms, _ = int8_activations(x)
    for n_tokens, batch in ((1, 1), (2, 2), (4, 2)):
        out = poisoned(batch, 4)
        kernel = emulated_kernel("matmul_cuda", "matmul_cuda", "Q4_K", n_tokens, 2, False)
        shape = (4, 512, codes, terms, None, 0, WRITE, count(batch), None, None, 0)
        run_kernel(kernel, 1, [out], out, 4, *planes, *shape)
        results.append(out[0].tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize(
    ("parameters", "told"),
    [(("Q2_K", 1, 1), "Q8_0"), (("Q8_0", 3, 1), "1, 2, 4, 8"), (("Q8_0", 1, 3), "1, 2, 4")],
)
def test_what_has_no_kernel_is_refused_with_what_has_one(parameters: tuple[str, int, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        matmul_cuda(emulated, *parameters, False)
