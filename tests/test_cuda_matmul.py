"""Decode matmul on a GPU, emulated, and its operands' forms, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases.matmul import decode_matmul, quantize_activations, round_activations
from cuda_emulated_ops import emulated
from cuda_kernel import count, emulated_kernel, poisoned, run_kernel, solve
from device_matrix import decoded, device_matrix, int8_activations, normal, stored_rows

from gguf_tools.dequantize import dequantize
from yakvrt.kernels.device_layout import DEVICE_LAYOUTS, device_planes_ref
from yakvrt.kernels.embed import embed_ref
from yakvrt.kernels.matmul import ADD, GATE, WRITE
from yakvrt.kernels.matmul_cuda import matmul_cuda

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
    solve(quantize_activations(3, n_cols))


@pytest.mark.parametrize("n_cols", [8, 1032])
def test_round_activations(n_cols: int) -> None:
    solve(round_activations(2, n_cols))


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
    multiple = DEVICE_LAYOUTS[name].column_multiple
    n_cols = n_units * 32 // multiple * multiple
    solve(decode_matmul(name, n_tokens, split, batch, n_outputs, n_cols, mode, with_bias=batch != 1))


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
