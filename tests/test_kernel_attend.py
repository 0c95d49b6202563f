"""Prefill and decode attention against numpy, over head sizes, group sizes, number formats and lengths."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_team import KernelTeam, count, number, poisoned

from yakvrt.cpu.features import host_features
from yakvrt.kernels.attend import CHUNK, attend_ref, scratch_floats
from yakvrt.kernels.attend_bf16 import scratch_bytes
from yakvrt.kernels.attend_decode import split_len_of
from yakvrt.kernels.kv_append import kv_append_ref
from yakvrt.kernels.merge_partials import MAX_PARTIALS

RNG = np.random.default_rng(3)
# heads of Llama, Qwen, SmolLM2 and tiny models, and sizes that are no power of two
CASES = [
    (1, 16, "f32"),
    (3, 64, "f16"),
    (4, 128, "bf16"),
    (6, 128, "f16"),
    (7, 48, "f32"),
    (8, 80, "f16"),
    (16, 256, "bf16"),
]


def storage(kind: str) -> np.dtype:
    import ml_dtypes

    return np.dtype({"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[kind])


class Cache:
    """A KV cache of two slots with `length` positions of random rows in slot 1; the rest is NaN."""

    def __init__(self, n_kv_heads: int, head_dim: int, kind: str, length: int) -> None:
        n_tiles = -(-length // 16)
        dtype = storage(kind)
        self.k = np.full((2, n_kv_heads, n_tiles, head_dim, 16), np.nan).astype(dtype)
        self.v = np.full((2, n_kv_heads, n_tiles * 16, head_dim), np.nan).astype(dtype)
        self.rows_k, self.rows_v = (
            RNG.standard_normal((length, n_kv_heads, head_dim)).astype(dtype) for _ in range(2)
        )
        slots = np.ones(length, np.int64)
        kv_append_ref(self.k, self.v, self.rows_k, self.rows_v, slots, np.arange(length))

    def arguments(self) -> tuple[object, ...]:
        return self.k, self.v, self.k.strides[0], self.k.strides[1]


def scratch(group: int, head_dim: int, n_threads: int) -> tuple[np.ndarray, int]:
    floats = -(-scratch_floats(group, head_dim, host_features().avx512) // 32) * 32
    return poisoned(n_threads, floats), floats * 4


@pytest.mark.parametrize(("group", "head_dim", "kind"), CASES)
@pytest.mark.parametrize(("start", "n_tokens"), [(0, 1), (0, 37), (250, 7), (CHUNK - 1, 2), (500, 40)])
def test_attend_prefill(
    team: KernelTeam, group: int, head_dim: int, kind: str, start: int, n_tokens: int
) -> None:
    n_kv_heads = 2
    cache = Cache(n_kv_heads, head_dim, kind, start + n_tokens)
    q = (RNG.standard_normal((n_tokens, n_kv_heads * group, head_dim)) * 2).astype(np.float32)
    out = poisoned(n_tokens + 1, n_kv_heads * group * head_dim)
    memory, per_thread = scratch(group, head_dim, team.n_threads)
    positions = np.arange(start, start + n_tokens)
    arguments = (np.ones(n_tokens, np.int64), positions, count(n_tokens), n_kv_heads, number(head_dim**-0.5))
    team.run(
        "attend",
        "attend_prefill_cpu",
        (group, head_dim, kind),
        out,
        q,
        out.strides[0],
        *cache.arguments(),
        *arguments,
        memory,
        per_thread,
    )
    expected = attend_ref(q, cache.rows_k, cache.rows_v, positions).reshape(n_tokens, -1)
    np.testing.assert_allclose(out[:n_tokens], expected, rtol=0, atol=1e-5)
    assert np.isnan(out[n_tokens:]).all()


@pytest.mark.skipif(not host_features().amx_bf16, reason="this CPU has no AMX")
@pytest.mark.parametrize(
    ("group", "head_dim", "kind"), [(1, 32, "f16"), (3, 64, "f16"), (4, 128, "bf16"), (16, 256, "bf16")]
)
@pytest.mark.parametrize(("start", "n_tokens"), [(0, 1), (0, 37), (250, 7), (CHUNK - 1, 2), (500, 70)])
def test_attend_prefill_bf16(
    team: KernelTeam, group: int, head_dim: int, kind: str, start: int, n_tokens: int
) -> None:
    n_kv_heads = 2
    cache = Cache(n_kv_heads, head_dim, kind, start + n_tokens)
    q = RNG.standard_normal((n_tokens, n_kv_heads * group, head_dim)).astype(np.float32)
    out = poisoned(n_tokens + 1, n_kv_heads * group * head_dim)
    per_thread = -(-scratch_bytes(head_dim) // 64) * 64
    memory = poisoned(team.n_threads, per_thread // 4)
    positions = np.arange(start, start + n_tokens)
    arguments = (np.ones(n_tokens, np.int64), positions, count(n_tokens), n_kv_heads, number(head_dim**-0.5))
    team.run(
        "attend_bf16",
        "attend_prefill_bf16_cpu",
        (group, head_dim, kind),
        *(out, q, out.strides[0], *cache.arguments(), *arguments, memory, per_thread),
    )
    rounded = (
        (x * scale).astype(storage("bf16")).astype(np.float32) / scale
        for x, scale in (
            (q, np.float32(head_dim**-0.5 * np.log2(np.e))),
            (cache.rows_k, 1),
            (cache.rows_v, 1),
        )
    )
    expected = attend_ref(*rounded, positions).reshape(n_tokens, -1)
    np.testing.assert_allclose(out[:n_tokens], expected, rtol=0, atol=6e-3)  # weights are rounded, too
    assert np.isnan(out[n_tokens:]).all()


@pytest.mark.parametrize(("group", "head_dim", "kind"), CASES)
@pytest.mark.parametrize("lengths", [(1,), (64,), (65, 300), (1500, 2, 33)])
def test_attend_decode_and_merge(
    team: KernelTeam, group: int, head_dim: int, kind: str, lengths: tuple[int, ...]
) -> None:
    """The newest position of every row is appended by the kernel; rows lie in slots of their own."""
    n_kv_heads, n_rows = 2, len(lengths)
    n_heads = n_kv_heads * group
    out, cache, q = decode(team, group, head_dim, kind, lengths)
    for row, length in enumerate(lengths):
        k, v = (rows[row][:length] for rows in (cache.rows_k, cache.rows_v))
        expected = attend_ref(q[row : row + 1], k, v, np.array([length - 1])).reshape(-1)
        np.testing.assert_allclose(out[row], expected, rtol=0, atol=1e-5)
    assert out.shape == (n_rows, n_heads * head_dim)


class DecodeCache:
    """One slot per row, each with all but its newest position filled; the rest is NaN."""

    def __init__(self, n_kv_heads: int, head_dim: int, kind: str, lengths: tuple[int, ...]) -> None:
        dtype, n_tiles = storage(kind), -(-max(lengths) // 16)
        self.k = np.full((len(lengths), n_kv_heads, n_tiles, head_dim, 16), np.nan).astype(dtype)
        self.v = np.full((len(lengths), n_kv_heads, n_tiles * 16, head_dim), np.nan).astype(dtype)
        shape = (max(lengths), n_kv_heads, head_dim)
        self.rows_k, self.rows_v = (
            [RNG.standard_normal(shape).astype(dtype) for _ in lengths] for _ in range(2)
        )
        for slot, length in enumerate(lengths):
            old = np.arange(length - 1)
            kv_append_ref(
                self.k, self.v, self.rows_k[slot], self.rows_v[slot], np.full(length - 1, slot), old
            )


def decode(
    team: KernelTeam, group: int, head_dim: int, kind: str, lengths: tuple[int, ...]
) -> tuple[np.ndarray, DecodeCache, np.ndarray]:
    n_kv_heads, n_rows = 2, len(lengths)
    n_heads = n_kv_heads * group
    cache = DecodeCache(n_kv_heads, head_dim, kind, lengths)
    q = (RNG.standard_normal((n_rows, n_heads, head_dim)) * 2).astype(np.float32)
    newest = [length - 1 for length in lengths]
    k, v = (
        np.stack([rows[i][newest[i]] for i in range(n_rows)]).astype(np.float32)
        for rows in (cache.rows_k, cache.rows_v)
    )
    sums = poisoned(n_rows, MAX_PARTIALS, n_heads, head_dim)
    stats = poisoned(n_rows, n_heads, 2, MAX_PARTIALS)
    memory, per_thread = scratch(group, head_dim, team.n_threads)
    positions = np.array(newest)
    row_bytes = n_heads * head_dim * 4
    team.run(
        "attend_decode",
        "attend_decode_cpu",
        (group, head_dim, kind),
        *(sums, stats, q, k, v, row_bytes, k.strides[0]),
        *(cache.k, cache.v, cache.k.strides[0], cache.k.strides[1]),
        *(np.arange(n_rows), positions, count(n_rows), n_kv_heads, number(head_dim**-0.5)),
        *(memory, per_thread),
    )
    out = poisoned(n_rows, n_heads * head_dim)
    factors = poisoned(team.n_threads, 16)
    merge = (out, row_bytes, sums, stats, n_heads, count(n_rows), factors)
    team.run("merge_partials", "merge_partials_cpu", (head_dim,), *merge)
    return out, cache, q


@pytest.mark.parametrize("length", [1, 63, 64, 65, 1023, 1024, 1025, 1 << 20])
def test_splits_cover_every_length(length: int) -> None:
    split_len = split_len_of(length)
    assert split_len % 16 == 0
    assert -(-length // split_len) <= MAX_PARTIALS
