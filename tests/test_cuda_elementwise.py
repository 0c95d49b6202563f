"""CUDA kernels of norms, RoPE, embedding, SwiGLU's gate, KV rows and argmax, against their truths."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases.arrays import normal
from cuda_cases.elementwise import argmax, embed, head_norm, kv_append, rms_norm, rope, rope_table, swiglu
from cuda_kernel import count, emulated_kernel, run_kernel, solve

from yakvrt.kernels.rms_norm import rms_norm_ref
from yakvrt.kernels.rope import rope_ref, rope_table_ref
from yakvrt.kernels.swiglu import swiglu_ref


@pytest.mark.parametrize(("n_rows", "width"), [(1, 4), (2, 576), (1, 1028), (3, 2048)])
def test_rms_norm(n_rows: int, width: int) -> None:
    solve(rms_norm(n_rows, width))


def test_rms_norm_in_place() -> None:
    x, weight = normal(2, 1040), normal(1040)
    expected = rms_norm_ref(x, weight, 1e-6)
    run_kernel(
        emulated_kernel("rms_norm", "rms_norm_cuda"), 2, [x], x, 1040, x, 1040, weight, 1040, 1e-6, count(2)
    )
    np.testing.assert_allclose(x, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("n_rows", "n_heads", "head_dim"), [(1, 1, 16), (2, 9, 64), (3, 5, 80), (1, 4, 128), (2, 3, 256)]
)
def test_head_norm(n_rows: int, n_heads: int, head_dim: int) -> None:
    solve(head_norm(n_rows, n_heads, head_dim))


@pytest.mark.parametrize(("n_rows", "head_dim"), [(1, 16), (3, 64), (2, 80), (1, 256), (2, 270)])
def test_rope_table(n_rows: int, head_dim: int) -> None:
    solve(rope_table(n_rows, head_dim))


@pytest.mark.parametrize(("n_rows", "n_heads", "head_dim"), [(1, 1, 16), (3, 5, 64), (2, 9, 80), (1, 3, 256)])
def test_rope(n_rows: int, n_heads: int, head_dim: int) -> None:
    solve(rope(n_rows, n_heads, head_dim))


def test_rope_and_swiglu_in_place() -> None:
    x, table = normal(2, 96), rope_table_ref(np.array([3, 70_000]), normal(16), 1.0).astype(np.float32)
    expected = rope_ref(x.reshape(2, 3, 32), table).reshape(2, 96)
    run_kernel(emulated_kernel("rope", "rope_cuda"), (1, 2), [x], x, x, 96, 3, 16, table, count(2))
    np.testing.assert_allclose(x, expected, rtol=0, atol=2e-6)
    gate, up = normal(2, 96), normal(2, 96)
    expected = swiglu_ref(gate, up)
    run_kernel(emulated_kernel("swiglu", "swiglu_cuda"), (1, 2), [gate], gate, gate, up, 96, count(2))
    np.testing.assert_allclose(gate, expected, rtol=2e-6)


@pytest.mark.parametrize(("n_rows", "width"), [(1, 4), (3, 1020), (2, 2052)])
def test_swiglu(n_rows: int, width: int) -> None:
    solve(swiglu(n_rows, width))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("width", [8, 576, 1032])
def test_embed(kind: str, width: int) -> None:
    solve(embed(kind, 3, width, 11))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("n_heads", "head_dim"), [(2, 16), (3, 64), (5, 256), (1, 80)])
def test_kv_append(kind: str, n_heads: int, head_dim: int) -> None:
    solve(kv_append(kind, n_heads, head_dim, [0, 2, 2, 1], [0, 5, 4, 3]))


@pytest.mark.parametrize(("n_rows", "n_tokens"), [(1, 4), (1, 8192), (1, 9004)])
def test_argmax(n_rows: int, n_tokens: int) -> None:
    solve(argmax(n_rows, n_tokens))


def test_argmax_of_odd_rows() -> None:
    """The last, the lowest of equals, and no NaN, which is told; nothing but -infinity gives a token all the
    same.
    """
    logits = np.full((4, 300), -np.inf, np.float32)
    logits[0, 299] = -1
    logits[1, [7, 260]] = 3
    logits[2, :100] = np.nan
    logits[2, 150] = -5
    ids, peaks = np.full(4, -7), np.full(4, -7, np.float32)
    run_kernel(emulated_kernel("argmax", "argmax_cuda"), 4, [ids, peaks], ids, peaks, logits, 300, count(4))
    np.testing.assert_array_equal(peaks, [-1, 3, np.nan, -np.inf])
    assert ids.tolist() == [299, 7, 150, 0]
