"""What leaves the window of a YAKV slot on a GPU, emulated, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases.arrays import stored
from cuda_cases.attention import exact_positions
from cuda_kernel import count, emulated_kernel, poisoned, run_kernel

from yakvrt.kernels.yakv_layout import Budget, ring_place
from yakvrt.kernels.yakv_leave_cuda import yakv_lengths_ref

RNG = np.random.default_rng(41)


def test_lengths_are_what_the_layout_says() -> None:
    lengths, selected, firsts, lasts = yakv_lengths_ref(
        np.array([0, 83, 84, 211, 9999]), 4, 80, Budget(1 << 18, 5, 200)
    )
    assert lengths.tolist() == [0, 0, 0, 64, 9856]
    assert selected.tolist() == [0, 0, 0, 53, 2500]
    assert (lasts - firsts).tolist() == [0, 0, 0, 64, 0]


@pytest.mark.parametrize("budget", [Budget(1 << 15, 1, 0), Budget(0, 100, 300), Budget(1 << 20, 1, 0)])
def test_lengths(budget: Budget) -> None:
    n_rows, capacity, n_heads, group, n_sinks, window = 140, 141, 2, 3, 5, 64
    positions = np.array([*range(0, 280, 2), 3_000_000_000])
    outputs = [np.full(size, -7) for size in (284, 284, 141, 141, 2)]
    arguments = (positions, count(n_rows), capacity, n_heads, group, n_sinks, window)
    kernel = emulated_kernel("yakv_leave_cuda", "yakv_lengths_cuda")
    limits = (budget.ratio, budget.at_least, budget.min_len)
    run_kernel(kernel, 2, outputs, *outputs, *arguments, *limits)
    expected = yakv_lengths_ref(positions[:n_rows], n_sinks, window, budget)
    for found, truth in zip(outputs[:2], expected, strict=False):
        np.testing.assert_array_equal(found, [*np.repeat(truth, n_heads), 0, 0, -7, -7])
    for found, truth in zip(outputs[2:4], expected[2:], strict=True):
        np.testing.assert_array_equal(found, [*truth, -7])
    assert outputs[4].tolist() == [n_rows * n_heads, n_rows * n_heads * group]


@pytest.mark.parametrize(("head_dim", "kind"), [(64, "bf16"), (128, "f16"), (48, "bf16"), (256, "f16")])
@pytest.mark.parametrize("centred", [True, False])
def test_leave(head_dim: int, kind: str, centred: bool) -> None:
    n_sinks, window, n_heads, n_slots = 5, 64, 2, 3
    ring_len, longest = window + 64, 5 + 64 * 6
    # the first block of a slot, none, and one whose rows wrap around
    lengths = [n_sinks + window + 64, n_sinks + window + 63, n_sinks + window + 64 * 4]
    slots, positions = np.array([2, 0, 1, 99]), np.array([*(n - 1 for n in lengths), 10**6])
    _, _, firsts, lasts = yakv_lengths_ref(positions[:3], n_sinks, window, Budget(0, 1, 0))
    rows, rings = [], []
    for _ in range(2):
        distinct, words = stored(
            RNG.standard_normal((3, n_heads, longest, head_dim)).astype(np.float32), kind
        )
        ring = np.full((n_slots, n_heads, n_sinks + ring_len, head_dim // 2), 0xFFFFFFFF, np.uint32)
        for i, (slot, length) in enumerate(zip(slots[:3], lengths, strict=True)):
            held = exact_positions(length, n_sinks, window)
            places = [ring_place(int(p), n_sinks, n_sinks, ring_len) for p in held]
            ring[slot][:, places] = words[i][:, held]
        rows.append(distinct)
        rings.append(ring)
    k_rows, v_rows = (poisoned(n_slots, n_heads, 64, head_dim) for _ in range(2))
    n_blocks = 6
    values = np.full((n_slots, n_heads, n_blocks, head_dim // 2), 7, np.uint32)
    means = poisoned(n_slots, n_heads, head_dim)
    ring_strides = (n_heads * (n_sinks + ring_len) * head_dim, (n_sinks + ring_len) * head_dim)
    run_kernel(
        emulated_kernel("yakv_leave_cuda", "yakv_leave_cuda", head_dim, kind, centred),
        (n_heads, 4),
        [k_rows, v_rows, values, means],
        *(k_rows, v_rows, values, n_heads * n_blocks * head_dim // 2, n_blocks * head_dim // 2),
        *(means, n_heads * head_dim, *rings, *ring_strides, firsts, lasts, positions, slots, count(3)),
        *(n_heads, n_sinks, window),
    )
    untouched = np.ones((n_slots, n_blocks), bool)
    for i in (0, 2):
        slot, block = slots[i], firsts[i] // 64
        untouched[slot, block] = False
        own = slice(n_sinks + firsts[i], n_sinks + firsts[i] + 64)
        for staged, distinct in ((k_rows, rows[0]), (v_rows, rows[1])):
            np.testing.assert_array_equal(staged[slot], distinct[i][:, own])
        halves = values[slot, :, block].view(np.float16)
        np.testing.assert_allclose(halves, rows[1][i][:, own].mean(axis=1), rtol=1e-3, atol=1e-4)
    assert (values.transpose(0, 2, 1, 3)[untouched] == 7).all()
    assert np.isnan(k_rows[0]).all()
    if centred:
        expected = rows[0][0][:, n_sinks : lengths[0]].mean(axis=1)
        np.testing.assert_allclose(means[2], expected, rtol=1e-5, atol=1e-6)
        assert np.isnan(means[:2]).all()
    else:
        assert np.isnan(means).all()
