"""Mixture of experts on a GPU, emulated: routing, packs, grouped matmuls and their sum, against numpy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cuda_kernel import blocks, count, emulated_kernel, poisoned, run_kernel
from device_matrix import device_matrix, int8_activations, normal

from yakvrt.kernels.matmul import GATE, WRITE, matmul_ref
from yakvrt.kernels.matmul_bf16 import matmul_bf16_ref
from yakvrt.kernels.matmul_bf16_cuda import OUTPUTS
from yakvrt.kernels.matmul_cuda import ROWS_AT_ONCE, WARPS
from yakvrt.kernels.moe import combine_ref, dispatch_ref, max_packs, route_ref
from yakvrt.kernels.swiglu import swiglu_ref

RNG = np.random.default_rng(31)


@pytest.mark.parametrize(("n_rows", "n_experts", "n_used"), [(1, 8, 2), (3, 128, 8), (2, 5, 5), (1, 512, 40)])
@pytest.mark.parametrize("renormalise", [False, True])
def test_route(n_rows: int, n_experts: int, n_used: int, renormalise: bool) -> None:
    logits = normal(n_rows + 1, n_experts) * 3
    if n_rows > 1:
        logits[1, 1:4] = logits[1].max() + 1  # the lowest of equal ones first
    ids, weights = np.full((n_rows + 1, n_used), -7, np.int32), poisoned(n_rows + 1, n_used)
    arguments = (ids, weights, logits, n_experts, n_used, int(renormalise), count(n_rows))
    run_kernel(emulated_kernel("moe_cuda", "moe_route_cuda"), n_rows + 1, [ids, weights], *arguments)
    expected_ids, expected_weights = route_ref(logits[:n_rows], n_used, renormalise)
    np.testing.assert_array_equal(ids[:n_rows], expected_ids)
    np.testing.assert_allclose(weights[:n_rows], expected_weights, rtol=2e-6)
    assert (ids[n_rows] == -7).all()
    assert np.isnan(weights[n_rows]).all()


def dispatched(ids: np.ndarray, n_experts: int, n_tokens: int, most_rows: int) -> list[np.ndarray]:
    """pack_expert, pack_row, place_of_pair and n_places of a batch that may hold most_rows."""
    n_rows, n_used = ids.shape
    packs = max_packs(most_rows, n_used, n_experts, n_tokens)
    sizes = (packs, packs * n_tokens, n_rows * n_used)
    outputs: list[np.ndarray] = [np.full(size, -7, np.int32) for size in sizes]
    outputs.append(np.full(1, -7, np.int64))
    arguments = (*outputs, ids.astype(np.int32), n_experts, n_used, count(n_rows))
    run_kernel(emulated_kernel("moe_cuda", "moe_dispatch_cuda", n_tokens), n_experts, outputs, *arguments)
    return outputs


@pytest.mark.parametrize("n_tokens", [1, 4])
@pytest.mark.parametrize(("n_rows", "n_experts", "n_used"), [(1, 3, 2), (70, 5, 4), (3, 2, 2)])
def test_dispatch(n_tokens: int, n_rows: int, n_experts: int, n_used: int) -> None:
    ids = np.stack([RNG.permutation(n_experts)[:n_used] for _ in range(n_rows)])
    pack_expert, pack_row, place_of_pair, n_places = dispatched(ids, n_experts, n_tokens, n_rows)
    experts, pairs = dispatch_ref(ids, n_experts, n_tokens)
    assert n_places[0] == len(pairs)
    assert pack_expert[: len(experts)].tolist() == experts
    assert pack_row[: len(pairs)].tolist() == [pair // n_used if pair >= 0 else -1 for pair in pairs]
    assert [pairs[place] for place in place_of_pair] == list(range(n_rows * n_used))
    assert (pack_expert[len(experts) :] == -7).all()
    assert (pack_row[len(pairs) :] == -7).all()


def test_combine() -> None:
    n_rows, n_used, width = 3, 3, 520
    results = normal(n_rows * n_used + 4, width)
    places = RNG.permutation(n_rows * n_used + 4)[: n_rows * n_used].astype(np.int32)
    weights, out = RNG.random((n_rows, n_used)).astype(np.float32), normal(n_rows + 1, width)
    expected = combine_ref(out[:n_rows], results[places].reshape(n_rows, n_used, width), weights)
    before = out[n_rows].copy()
    arguments = (out, width, results, width, places, weights, width, n_used, count(n_rows))
    kernel = emulated_kernel("moe_cuda", "moe_combine_cuda")
    run_kernel(kernel, (blocks(width, 512), n_rows + 1), [out], *arguments)
    np.testing.assert_allclose(out[:n_rows], expected, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(out[n_rows], before)


def run_decode(out: np.ndarray, name: str, planes: Any, x: np.ndarray, *rest: Any) -> np.ndarray:
    """A grouped decode matmul; returns the activations that it used."""
    n_outputs, mode, packs, gathered, pack = rest
    given, terms, used = (x, None, x) if name == "BF16" else int8_activations(x)
    kernel = emulated_kernel("matmul_cuda", "matmul_cuda", name, pack, 1, True)
    grid = (blocks(n_outputs, ROWS_AT_ONCE * WARPS), len(packs[0]))
    shape = (n_outputs, x.shape[1], given, terms, None, 0, mode, packs[3], packs[0], packs[1], gathered)
    run_kernel(kernel, grid, [out], out, out.shape[1], *planes, *shape)
    return used


def run_prefill(out: np.ndarray, name: str, planes: Any, x: np.ndarray, *rest: Any) -> np.ndarray:
    n_outputs, mode, packs, gathered, pack = rest
    kernel = emulated_kernel("matmul_bf16_cuda", "matmul_bf16_cuda", name, pack, True)
    words = x.astype(ml_dtypes.bfloat16).view(np.uint32)
    grid = (len(packs[0]), blocks(n_outputs, OUTPUTS))
    shape = (n_outputs, x.shape[1], words, None, 0, mode, packs[3], packs[0], packs[1], gathered)
    run_kernel(kernel, grid, [out], out, out.shape[1], *planes, *shape)
    return x


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("name", ["BF16", "Q4_K", "Q8_0"])
def test_grouped_matmul(phase: str, name: str) -> None:
    """gate and up of rows gathered by pack, then down of places, as a feed-forward uses them."""
    n_experts, n_used, n_rows, n_outputs = 3, 2, 5, 6
    n_cols = 256 if name == "Q4_K" else 64
    pack = 2 if phase == "decode" else 16
    run, truth = (run_decode, matmul_ref) if phase == "decode" else (run_prefill, matmul_bf16_ref)
    ids = np.array([[0, 2], [2, 0], [2, 0], [0, 2], [2, 0]])  # nobody visits expert 1
    packs = dispatched(ids, n_experts, pack, n_rows + 2)
    experts, pairs = dispatch_ref(ids, n_experts, pack)
    weights, planes = device_matrix(name, n_experts * n_outputs, n_cols)
    stack, x = weights.reshape(n_experts, n_outputs, n_cols), normal(n_rows, n_cols)
    places = [place for place, pair in enumerate(pairs) if pair >= 0]
    gate = normal(len(packs[1]), n_outputs)
    out = gate.copy()
    used = run(out, name, planes, x, n_outputs, GATE, packs, 1, pack)
    for place in places:
        product = truth(stack[experts[place // pack]], used[None, pairs[place] // n_used])[0]
        expected = swiglu_ref(gate[place], product)
        np.testing.assert_allclose(out[place], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(out[len(pairs) :], gate[len(pairs) :])

    inner, out = normal(len(packs[1]), n_cols), poisoned(len(packs[1]), n_outputs)
    used = run(out, name, planes, inner, n_outputs, WRITE, packs, 0, pack)
    for place in places:
        expected = truth(stack[experts[place // pack]], used[place : place + 1])[0]
        np.testing.assert_allclose(out[place], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.isnan(out[len(pairs) :]).all()
