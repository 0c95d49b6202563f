"""Attention on a GPU, emulated: decode and prefill over resident rows, and joining partials."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cuda_kernel import blocks, count, emulated_kernel, poisoned, run_kernel

from yakvrt.kernels.attend import attend_ref
from yakvrt.kernels.attend_fragments import head_blocks
from yakvrt.kernels.merge_partials import merge_partials_ref

RNG = np.random.default_rng(23)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def cache(
    kind: str, n_slots: int, n_heads: int, capacity: int, head_dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in a number format, and the words that hold them."""
    import ml_dtypes

    rows = normal(n_slots, n_heads, capacity, head_dim)
    if kind == "f32":
        return rows.copy(), rows.reshape(-1)
    held = rows.astype({"f16": np.float16, "bf16": ml_dtypes.bfloat16}[kind])
    return held.astype(np.float32), held.reshape(-1).view(np.uint32)


@pytest.mark.parametrize(
    ("group", "head_dim", "kind", "lengths", "n_splits"),
    [
        (4, 128, "bf16", (1, 83), 2),
        (3, 64, "f16", (64, 65, 150), 3),
        (1, 64, "bf16", (17,), 1),
        (8, 64, "bf16", (40,), 1),
        (9, 64, "f16", (70,), 2),
        (16, 128, "bf16", (33,), 1),
        (2, 256, "f16", (20,), 1),
        (20, 192, "bf16", (9,), 1),
    ],
)
def test_attend_decode_and_merge(
    group: int, head_dim: int, kind: str, lengths: tuple[int, ...], n_splits: int
) -> None:
    n_rows, n_heads, first = len(lengths), 2, 1
    n_partials, capacity = first + n_splits + 1, max(lengths) + 3
    n_slots, width = n_rows + 1, n_heads * group * head_dim
    (k, k_words), (v, v_words) = (cache(kind, n_slots, n_heads, capacity, head_dim) for _ in range(2))
    for slot, length in enumerate((0, *reversed(lengths))):  # what lies behind the newest row is never used
        for held, w in ((k, k_words), (v, v_words)):
            w.reshape(n_slots, n_heads, capacity, -1)[slot, :, length:] = 0xFFFFFFFF
            held[slot, :, length:] = np.nan
    q = normal(n_rows + 1, width + 4)
    slots = np.array([*range(n_rows, 0, -1), 99], np.int64)
    positions = np.array([length - 1 for length in lengths] + [10**6], np.int64)
    sums = poisoned(n_rows + 1, n_heads * group, n_partials, head_dim)
    stats = poisoned(n_rows + 1, n_heads * group, n_partials, 2)
    strides = (n_heads * capacity * head_dim, capacity * head_dim)
    run_kernel(
        emulated_kernel("attend_decode_cuda", "attend_decode_cuda", head_dim, kind),
        (n_heads * n_splits * head_blocks(group), n_rows + 1),
        [sums, stats],
        *(sums, stats, first, n_partials, n_splits, q, width + 4, k_words, v_words, *strides),
        *(slots, positions, count(n_rows), n_heads, group, 1 / math.sqrt(head_dim)),
    )
    own = slice(first, first + n_splits)
    assert np.isnan(sums[n_rows:]).all()
    assert np.isnan(stats[:, :, [0, -1]]).all()
    assert np.isfinite(stats[:n_rows, :, own]).all()
    found = merge_partials_ref(sums[:n_rows, :, own], stats[:n_rows, :, own])
    for row in range(n_rows):
        heads = q[row : row + 1, :width].reshape(1, -1, head_dim)
        held = (x[slots[row]].transpose(1, 0, 2) for x in (k, v))
        expected = attend_ref(heads, *held, positions[row : row + 1])
        np.testing.assert_allclose(found[row : row + 1], expected, rtol=0, atol=4e-5)


@pytest.mark.parametrize(
    ("head_dim", "n_partials", "n_heads", "n_rows"),
    [(64, 1, 3, 2), (128, 37, 2, 1), (256, 5, 1, 2), (80, 66, 2, 1), (48, 4, 1, 1), (512, 3, 1, 1)],
)
def test_merge_partials(head_dim: int, n_partials: int, n_heads: int, n_rows: int) -> None:
    sums, stats = normal(n_rows, n_heads, n_partials, head_dim), normal(n_rows, n_heads, n_partials, 2) * 9
    stats[..., 1] = np.abs(stats[..., 1]) + 0.5
    absent = RNG.random((n_rows, n_heads, n_partials)) < 0.3
    absent[..., n_partials // 2] = False
    sums[absent], stats[absent] = np.nan, (3e4, 0)
    out = poisoned(n_rows + 1, n_heads * head_dim + 4)
    kernel = emulated_kernel("merge_partials", "merge_partials_cuda", head_dim)
    arguments = (out.shape[1], sums, stats, n_partials, n_heads, count(n_rows))
    run_kernel(kernel, (n_heads, n_rows + 1), [out], out, *arguments)
    expected = merge_partials_ref(sums, stats).reshape(n_rows, -1)
    np.testing.assert_allclose(out[:n_rows, :-4], expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(out[n_rows:]).all()
    assert np.isnan(out[:, -4:]).all()


@pytest.mark.parametrize(
    ("parameters", "told"),
    [((80, "bf16"), "64, 128, 192, 256"), ((64, "f32"), "bf16 or f16")],
)
def test_shapes_without_a_kernel_are_refused(parameters: tuple[int, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        emulated_kernel("attend_decode_cuda", "attend_decode_cuda", *parameters)


@pytest.mark.parametrize(
    ("group", "head_dim", "kind", "start", "n_tokens"),
    [
        (1, 64, "bf16", 0, 129),
        (5, 64, "f16", 66, 26),
        (16, 64, "bf16", 61, 9),
        (3, 128, "f16", 60, 7),
        (2, 256, "bf16", 30, 3),
        (16, 192, "f16", 0, 1),
    ],
)
def test_attend_prefill(group: int, head_dim: int, kind: str, start: int, n_tokens: int) -> None:
    from yakvrt.kernels.attend_prefill_cuda import prefill_tokens_cuda

    n_heads, capacity, slot = 2 if head_dim == 192 else 1, start + n_tokens + 1, 1
    width = n_heads * group * head_dim
    (k, k_words), (v, v_words) = (cache(kind, 2, n_heads, capacity, head_dim) for _ in range(2))
    for w in (k_words, v_words):
        w.reshape(2, n_heads, capacity, -1)[:, :, -1] = 0xFFFFFFFF
    q, out = normal(n_tokens + 1, width + 4), poisoned(n_tokens + 1, width)
    strides = (n_heads * capacity * head_dim, capacity * head_dim)
    n_blocks = blocks(n_tokens, prefill_tokens_cuda(group)) + 1
    run_kernel(
        emulated_kernel("attend_prefill_cuda", "attend_prefill_cuda", head_dim, kind),
        (n_blocks, n_heads),
        [out],
        *(out, width, q, width + 4, k_words, v_words, *strides),
        *(np.array([slot, 9], np.int64), np.array([start, -1], np.int64), count(n_tokens)),
        *(group, 1 / math.sqrt(head_dim)),
    )
    heads = q[:n_tokens, :width].reshape(n_tokens, -1, head_dim)
    positions = start + np.arange(n_tokens)
    expected = attend_ref(heads, *(x[slot, :, :-1].transpose(1, 0, 2) for x in (k, v)), positions)
    # queries and weights have 8 (bf16) or 11 (f16) digits
    difference = np.abs(out[:n_tokens].reshape(expected.shape) - expected)
    largest, mean = (2e-2, 2e-3) if kind == "bf16" else (3e-3, 3e-4)
    assert difference.max() < largest
    assert difference.mean() < mean
    assert np.isnan(out[n_tokens:]).all()


@pytest.mark.parametrize(
    ("group", "head_dim", "kind", "lengths"),
    [
        (4, 16, "f32", (1, 31, 200)),
        (1, 80, "f16", (33,)),
        (3, 112, "bf16", (130, 2)),
        (2, 256, "f32", (5,)),
        (2, 2, "bf16", (40,)),
    ],
)
def test_attend_plain(group: int, head_dim: int, kind: str, lengths: tuple[int, ...]) -> None:
    """Rows of several slots, as in decode, or of one, as in a prompt: the kernel makes no difference."""
    n_rows, n_heads, n_slots, capacity = len(lengths), 2, 2, max(lengths) + 1
    width = n_heads * group * head_dim
    (k, k_words), (v, v_words) = (cache(kind, n_slots, n_heads, capacity, head_dim) for _ in range(2))
    for w in (k_words, v_words):
        w.view(np.uint32).reshape(n_slots, n_heads, capacity, -1)[:, :, max(lengths) :] = 0xFFFFFFFF
    q, out = normal(n_rows + 1, width + 4), poisoned(n_rows + 1, width + 2)
    slots = np.array([*(row % n_slots for row in range(n_rows)), 99], np.int64)
    positions = np.array([length - 1 for length in lengths] + [10**6], np.int64)
    strides = (n_heads * capacity * head_dim, capacity * head_dim)
    run_kernel(
        emulated_kernel("attend_plain_cuda", "attend_plain_cuda", head_dim, kind),
        (n_heads * group, n_rows + 1),
        [out],
        *(out, width + 2, q, width + 4, k_words, v_words, *strides, slots, positions, count(n_rows)),
        *(group, 1 / math.sqrt(head_dim)),
    )
    assert np.isnan(out[n_rows:]).all()
    assert np.isnan(out[:, width:]).all()
    for row in range(n_rows):
        heads = q[row : row + 1, :width].reshape(1, -1, head_dim)
        held = (x[slots[row], :, : lengths[row]].transpose(1, 0, 2) for x in (k, v))
        expected = attend_ref(heads, *held, positions[row : row + 1]).reshape(1, width)
        np.testing.assert_allclose(out[row : row + 1, :width], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("shape", "told"), [((7, "f32"), "even ones"), ((64, "q8"), "f32, f16 or bf16")])
def test_attend_plain_refuses_what_it_cannot_do(shape: tuple[int, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        emulated_kernel("attend_plain_cuda", "attend_plain_cuda", *shape)
