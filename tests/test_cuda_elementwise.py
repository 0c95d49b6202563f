"""CUDA kernels of norms, RoPE, embedding, SwiGLU's gate, KV rows and argmax, against their truths."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_kernel import blocks, count, emulated_kernel, poisoned, run_kernel

from yakvrt.kernels.argmax import argmax_ref
from yakvrt.kernels.embed import embed_ref
from yakvrt.kernels.kv_append import append_rows_ref
from yakvrt.kernels.rms_norm import rms_norm_ref
from yakvrt.kernels.rope import rope_ref, rope_table_ref
from yakvrt.kernels.swiglu import swiglu_ref

RNG = np.random.default_rng(7)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def stored(x: np.ndarray, kind: str) -> np.ndarray:
    """Numbers in a format that tables and caches rest in."""
    import ml_dtypes

    with np.errstate(over="ignore"):
        return x.astype({"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[kind])


def words(x: np.ndarray) -> np.ndarray:
    """As kernels take them: halves in pairs."""
    return x if x.dtype == np.float32 else x.reshape(-1).view(np.uint32)


@pytest.mark.parametrize(("n_rows", "width"), [(1, 4), (2, 576), (1, 1028), (3, 2048)])
def test_rms_norm(n_rows: int, width: int) -> None:
    x, weight, out = normal(n_rows + 1, width + 4, scale=3), normal(width), poisoned(n_rows + 1, width)
    arguments = (width, x, width + 4, weight, width, 1e-5, count(n_rows))
    run_kernel(emulated_kernel("rms_norm", "rms_norm_cuda"), n_rows + 1, [out], out, *arguments)
    expected = rms_norm_ref(x[:n_rows, :width], weight, 1e-5)
    np.testing.assert_allclose(out[:n_rows], expected, rtol=2e-6, atol=1e-6)
    assert np.isnan(out[n_rows:]).all()


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
    width = n_heads * head_dim
    x, weight, out = normal(n_rows + 1, width), normal(head_dim), poisoned(n_rows + 1, width)
    arguments = (width, x, width, weight, head_dim, n_heads, 1e-6, count(n_rows))
    grid = (blocks(n_heads, 4), n_rows + 1)
    run_kernel(emulated_kernel("rms_norm", "head_norm_cuda"), grid, [out], out, *arguments)
    expected = rms_norm_ref(x[:n_rows].reshape(n_rows, n_heads, head_dim), weight, 1e-6)
    np.testing.assert_allclose(out[:n_rows], expected.reshape(n_rows, width), rtol=2e-6, atol=1e-6)
    assert np.isnan(out[n_rows:]).all()


@pytest.mark.parametrize(("n_rows", "head_dim"), [(1, 16), (3, 64), (2, 80), (1, 256), (2, 270)])
def test_rope_table(n_rows: int, head_dim: int) -> None:
    half = head_dim // 2
    positions = RNG.integers(0, 2**20, n_rows + 1)
    positions[0] = 0
    inv_freq = (10_000.0 ** -(np.arange(half) / half)).astype(np.float32)
    table = poisoned(n_rows + 1, head_dim)
    arguments = (positions, inv_freq, half, 1.25, count(n_rows))
    grid = (blocks(half, 128), n_rows + 1)
    run_kernel(emulated_kernel("rope", "rope_table_cuda"), grid, [table], table, *arguments)
    expected = rope_table_ref(positions[:n_rows], inv_freq, 1.25)
    np.testing.assert_allclose(table[:n_rows], expected, rtol=0, atol=2.5e-7)
    assert np.isnan(table[n_rows:]).all()


@pytest.mark.parametrize(("n_rows", "n_heads", "head_dim"), [(1, 1, 16), (3, 5, 64), (2, 9, 80), (1, 3, 256)])
def test_rope(n_rows: int, n_heads: int, head_dim: int) -> None:
    width, half = n_heads * head_dim, head_dim // 2
    positions = RNG.integers(0, 100_000, n_rows)
    table = rope_table_ref(positions, normal(half), 1.0).astype(np.float32)
    x = normal(n_rows, width)
    expected = rope_ref(x.reshape(n_rows, n_heads, head_dim), table).reshape(n_rows, width)
    kernel = emulated_kernel("rope", "rope_cuda")
    grid = (blocks(n_heads * half, 512), n_rows + 1)
    out = poisoned(n_rows + 1, width)
    run_kernel(kernel, grid, [out], out, x, width, n_heads, half, table, count(n_rows))
    np.testing.assert_allclose(out[:n_rows], expected, rtol=0, atol=2e-6)
    assert np.isnan(out[n_rows:]).all()
    run_kernel(kernel, grid, [x], x, x, width, n_heads, half, table, count(n_rows))
    np.testing.assert_array_equal(x, out[:n_rows])


@pytest.mark.parametrize(("n_rows", "width"), [(1, 4), (3, 1020), (2, 2052)])
def test_swiglu(n_rows: int, width: int) -> None:
    gate, up = normal(n_rows + 1, width, scale=4), normal(n_rows + 1, width)
    gate[0, :4] = [0, -100, 100, 1e-30]
    kernel = emulated_kernel("swiglu", "swiglu_cuda")
    expected = swiglu_ref(gate[:n_rows], up[:n_rows])
    out, grid = poisoned(n_rows + 1, width), (blocks(width, 1024), n_rows + 1)
    run_kernel(kernel, grid, [out], out, gate, up, width, count(n_rows))
    np.testing.assert_allclose(out[:n_rows], expected, rtol=2e-6, atol=1e-30)
    assert np.isnan(out[n_rows:]).all()
    run_kernel(kernel, grid, [gate], gate, gate, up, width, count(n_rows))
    np.testing.assert_array_equal(gate[:n_rows], out[:n_rows])


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("width", [8, 576, 1032])
def test_embed(kind: str, width: int) -> None:
    n_rows = 3
    table = stored(normal(11, width), kind)
    tokens = np.array([0, 10, 4, 99])
    out = poisoned(n_rows + 1, width)
    arguments = (words(table), tokens, width, count(n_rows))
    run_kernel(emulated_kernel("embed", "embed_cuda", kind), n_rows + 1, [out], out, *arguments)
    np.testing.assert_array_equal(out[:n_rows], embed_ref(table, tokens[:n_rows]).astype(np.float32))
    assert np.isnan(out[n_rows:]).all()


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("n_heads", "head_dim"), [(2, 16), (3, 64), (5, 256), (1, 80)])
def test_kv_append(kind: str, n_heads: int, head_dim: int) -> None:
    n_slots, n_positions, n_rows = 3, 6, 4
    k, v = normal(n_rows, n_heads * head_dim), normal(n_rows, n_heads * head_dim)
    k[0, :3] = [np.inf, 1e-7, 70_000.0]
    slots, positions = np.array([0, 2, 2, 1]), np.array([0, 5, 4, 3])
    caches = [stored(normal(n_slots, n_heads, n_positions, head_dim), kind) for _ in range(2)]
    expected = [cache.copy() for cache in caches]
    for cache, rows in zip(expected, (k, v), strict=True):
        append_rows_ref(cache, stored(rows, kind).reshape(n_rows, n_heads, head_dim), slots, positions)
    k_cache, v_cache = map(words, caches)
    strides = (n_heads * n_positions * head_dim, n_positions * head_dim)
    row = n_heads * head_dim
    arguments = (*strides, k, v, row, n_heads, head_dim, slots, positions, count(n_rows), 0, 0)
    grid = (blocks(row, 1024), n_rows + 1)
    kernel = emulated_kernel("kv_append", "kv_append_cuda", kind)
    run_kernel(kernel, grid, [k_cache, v_cache], k_cache, v_cache, *arguments)
    for cache, truth in zip(caches, expected, strict=True):
        np.testing.assert_array_equal(cache.view(np.uint8), truth.view(np.uint8))


@pytest.mark.parametrize(("n_rows", "n_tokens"), [(1, 4), (1, 8192), (1, 9004)])
def test_argmax(n_rows: int, n_tokens: int) -> None:
    kernel = emulated_kernel("argmax", "argmax_cuda")
    logits = normal(n_rows + 1, n_tokens).round(1)  # with equal ones
    ids = np.full(n_rows + 1, -7)
    run_kernel(kernel, n_rows + 1, [ids], ids, logits, n_tokens, count(n_rows))
    np.testing.assert_array_equal(ids, [*argmax_ref(logits[:n_rows]), -7])


def test_argmax_of_odd_rows() -> None:
    """The last, the lowest of equals, and no NaN; nothing but -infinity gives a token all the same."""
    logits = np.full((4, 300), -np.inf, np.float32)
    logits[0, 299] = -1
    logits[1, [7, 260]] = 3
    logits[2, :100] = np.nan
    logits[2, 150] = -5
    ids = np.full(4, -7)
    run_kernel(emulated_kernel("argmax", "argmax_cuda"), 4, [ids], ids, logits, 300, count(4))
    assert ids.tolist() == [299, 7, 150, 0]
