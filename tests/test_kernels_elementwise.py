"""rms_norm, rope, embed and kv_append against their numpy truths."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_team import KernelTeam, count, number, poisoned

from yakvrt.kernels.kv_append import kv_append_ref
from yakvrt.kernels.rms_norm import rms_norm_ref
from yakvrt.kernels.rope import rope_ref, rope_table_ref

RNG = np.random.default_rng(5)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize(("n_rows", "width", "segments"), [(1, 16, 1), (1, 576, 1), (7, 128, 3), (3, 48, 5)])
def test_rms_norm(team: KernelTeam, n_rows: int, width: int, segments: int) -> None:
    x, weight = normal(n_rows, segments * width, scale=3), normal(width)
    out = poisoned(n_rows + 1, segments * width)
    stride = x.strides[0]
    team.run(
        "rms_norm",
        "rms_norm_cpu",
        (),
        out,
        stride,
        x,
        stride,
        weight,
        width,
        segments,
        count(n_rows),
        number(1e-5),
    )
    expected = rms_norm_ref(x.reshape(n_rows, segments, width), weight, 1e-5).reshape(x.shape)
    np.testing.assert_allclose(out[:n_rows], expected, rtol=2e-6, atol=1e-6)
    assert np.isnan(out[n_rows:]).all()


@pytest.mark.parametrize(("n_rows", "n_heads", "head_dim"), [(1, 1, 16), (5, 3, 64), (2, 9, 48)])
def test_rope(team: KernelTeam, n_rows: int, n_heads: int, head_dim: int) -> None:
    positions = RNG.integers(0, 100_000, n_rows)
    inv_freq = (10_000.0 ** -(np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    table = poisoned(n_rows, head_dim)
    arguments = (table, positions, inv_freq, head_dim // 2, count(n_rows), number(1.25))
    team.run("rope", "rope_table_cpu", (), *arguments)
    expected_table = rope_table_ref(positions, inv_freq, 1.25)
    np.testing.assert_allclose(table, expected_table, atol=2e-7)
    x, out = normal(n_rows, n_heads * head_dim), poisoned(n_rows, n_heads * head_dim)
    team.run("rope", "rope_cpu", (), out, x, x.strides[0], n_heads, head_dim // 2, table, count(n_rows))
    expected = rope_ref(x.reshape(n_rows, n_heads, head_dim), expected_table)
    np.testing.assert_allclose(out.reshape(expected.shape), expected, atol=2e-6)


def bits(x: np.ndarray, kind: str) -> np.ndarray:
    """Numbers as the cache stores them."""
    import ml_dtypes

    types = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
    return x.astype(types[kind])


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("head_dim", [16, 64, 80])
def test_kv_append(team: KernelTeam, kind: str, head_dim: int) -> None:
    n_slots, n_heads, n_positions, n_rows = 3, 2, 48, 5
    k, v = normal(n_rows, n_heads * head_dim), normal(n_rows, n_heads * head_dim)
    k[0, :3] = [np.inf, 1e-7, 70_000.0]
    with np.errstate(over="ignore"):
        expected_k = bits(np.zeros((n_slots, n_heads, n_positions // 16, head_dim, 16), np.float32), kind)
        expected_v = bits(np.zeros((n_slots, n_heads, n_positions, head_dim), np.float32), kind)
        k_cache, v_cache = expected_k.copy(), expected_v.copy()
        slots, positions = np.array([0, 2, 2, 1, 0]), np.array([0, 15, 16, 47, 1])
        shape = (n_rows, n_heads, head_dim)
        kv_append_ref(
            expected_k,
            expected_v,
            bits(k, kind).reshape(shape),
            bits(v, kind).reshape(shape),
            slots,
            positions,
        )
    team.run(
        "kv_append",
        "kv_append_cpu",
        (head_dim, kind),
        k_cache,
        v_cache,
        k_cache.strides[0],
        k_cache.strides[1],
        k,
        v,
        k.strides[0],
        n_heads,
        slots,
        positions,
        count(n_rows),
    )
    np.testing.assert_array_equal(k_cache.view(np.uint8), expected_k.view(np.uint8))
    np.testing.assert_array_equal(v_cache.view(np.uint8), expected_v.view(np.uint8))


def test_every_thread_writes_its_own_copy(team: KernelTeam) -> None:
    """With out_copy set, each thread computes the whole row into a copy that many bytes apart."""
    x, weight, inv_freq = normal(1, 64), normal(64), normal(8)
    copies = poisoned(team.n_threads, 64)
    stride = copies.strides[0]
    arguments = (copies, stride, x, stride, weight, 64, 1, count(1), number(1e-5))
    team.run("rms_norm", "rms_norm_cpu", (), *arguments, stride, 0)
    normed = rms_norm_ref(x, weight, 1e-5)
    np.testing.assert_allclose(copies, np.repeat(normed, team.n_threads, axis=0), rtol=2e-6, atol=1e-6)
    table, rotated = rope_table_ref(np.array([77]), inv_freq, 1.0), poisoned(team.n_threads, 64)
    arguments = (rotated, copies, stride, 4, 8, table.astype(np.float32), count(1), stride, stride)
    team.run("rope", "rope_cpu", (), *arguments)
    expected = rope_ref(normed.reshape(1, 4, 16), table).reshape(1, 64)
    np.testing.assert_allclose(rotated, np.repeat(expected, team.n_threads, axis=0), atol=3e-6)
