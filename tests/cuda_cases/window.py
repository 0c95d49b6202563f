"""The window of YAKV slots: what follows from their lengths, and the block that leaves."""

from __future__ import annotations

import numpy as np

from yakvrt.cuda.kernel_list import HEAD_DIMS
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS
from yakvrt.kernels.yakv_layout import Budget, ring_place
from yakvrt.kernels.yakv_leave_cuda import yakv_lengths_ref

from .arrays import blocks, count, normal, poisoned, stored
from .attention import NEVER_USED, exact_positions
from .case import Case, Launch, Sized, compare, sized, untouched


def lengths(budget: Budget, n_rows: int = 140, n_heads: int = 2, group: int = 3) -> Case:
    """Slots of many lengths; a row that the batch lacks, and one that it cannot have."""
    capacity, turn_rows, n_sinks, window = n_rows + 1, n_rows // 3, 5, 64
    positions = np.array([*range(0, 2 * (n_rows - 1), 2), 3_000_000_000, 7])
    outputs = [poisoned(n, dtype=np.int64) for n in ((capacity + 1) * n_heads,) * 2 + (capacity,) * 2 + (13,)]
    launch = Launch(
        kernel("yakv_leave_cuda", "yakv_lengths_cuda"),
        blocks(capacity, 128),
        outputs,
        (
            *(*outputs, turn_rows, positions, count(n_rows), capacity, n_heads, group, n_sinks, window),
            *(budget.ratio, budget.at_least, budget.min_len),
        ),
    )

    def check() -> float:
        expected = yakv_lengths_ref(positions[:n_rows], n_sinks, window, budget)
        for found, truth in zip(outputs[:2], expected, strict=False):
            compare(
                "of heads", found[: capacity * n_heads], np.append(np.repeat(truth, n_heads), [0] * n_heads)
            )
            untouched("further heads", found[capacity * n_heads :])
        for found, truth in zip(outputs[2:4], expected[2:], strict=True):
            compare("of rows", found[:n_rows], truth)
            untouched("further rows", found[n_rows:])
        untouched("further turns", outputs[4][12:])
        present = np.clip(n_rows - turn_rows * np.arange(4), 0, turn_rows)
        return compare(
            "totals", outputs[4][:12], np.outer(present, [1, n_heads, n_heads * group]).reshape(-1)
        )

    return Case([launch], check)


def leave(head_dim: int, kind: str, centred: bool, n_heads: int = 2, window: int = 64) -> Case:
    """The first block of a slot, none, and one whose rows wrap around; a row too many."""
    n_sinks, n_slots, ring_len = 5, 3, window + BLOCK_TOKENS
    held = [n_sinks + ring_len, n_sinks + ring_len - 1, n_sinks + window + BLOCK_TOKENS * 4]
    slots, positions = np.array([2, 0, 1, 99]), np.array([*(n - 1 for n in held), 10**6])
    _, _, firsts, lasts = yakv_lengths_ref(positions[:3], n_sinks, window, Budget(0, 1, 0))
    rows, rings = [], []
    for _ in range(2):
        distinct, words = stored(normal(3, n_heads, max(held), head_dim), kind)
        ring = np.full((n_slots, n_heads, n_sinks + ring_len, head_dim // 2), NEVER_USED, np.uint32)
        for i, n in enumerate(held):
            exact = exact_positions(n, n_sinks, window)
            ring[slots[i]][:, [ring_place(int(p), n_sinks, n_sinks, ring_len) for p in exact]] = words[i][
                :, exact
            ]
        rows.append(distinct)
        rings.append(ring)
    k_rows, v_rows = (poisoned(n_slots, n_heads, BLOCK_TOKENS, head_dim) for _ in range(2))
    values = poisoned(n_slots, n_heads, 6, head_dim // 2, dtype=np.uint32)
    means = poisoned(n_slots, n_heads, head_dim)
    launch = Launch(
        kernel("yakv_leave_cuda", "yakv_leave_cuda", head_dim, kind, centred),
        (n_heads, 4),
        [k_rows, v_rows, values, means],
        (
            *(k_rows, v_rows, values, values.strides[0] // 4, values.strides[1] // 4),
            *(means, n_heads * head_dim, *rings, rings[0].strides[0] // 2, rings[0].strides[1] // 2),
            *(firsts, lasts, positions, slots, count(3), n_heads, n_sinks, window),
        ),
        2 * n_heads * BLOCK_TOKENS * head_dim * 12,
    )

    def check() -> float:
        worst = 0.0
        for i in (0, 2):
            slot, block = slots[i], firsts[i] // BLOCK_TOKENS
            own = slice(n_sinks + firsts[i], n_sinks + lasts[i])
            for staged, distinct in ((k_rows, rows[0]), (v_rows, rows[1])):
                compare("rows", staged[slot], distinct[i][:, own])
            halves, truth = values[slot, :, block].view(np.float16), rows[1][i][:, own].mean(axis=1)
            worst = max(worst, compare("mean values", halves, truth, rtol=1e-3, atol=1e-4))
        if centred:
            truth = rows[0][0][:, n_sinks : held[0]].mean(axis=1)
            worst = max(worst, compare("mean keys", means[2], truth, rtol=1e-5, atol=1e-6))
        untouched("mean keys of others", means[:2] if centred else means)
        untouched("rows of a slot that keeps its own", k_rows[0])
        others = np.ones((n_slots, 6), bool)
        others[slots[[0, 2]], firsts[[0, 2]] // BLOCK_TOKENS] = False
        untouched("other mean values", values.transpose(0, 2, 1, 3)[others])
        return worst

    return Case([launch], check)


def small() -> list[Sized]:
    return [
        sized("lengths", lengths, Budget(1 << 15, 1, 0), 20),
        sized("leave the window", leave, 64, "bf16", True),
    ]


def real() -> list[Sized]:
    return [
        sized("lengths", lengths, Budget(1 << 15, 1, 0)),
        *(
            sized(f"leave the window {size} {kind}", leave, size, kind, True, 8, 128)
            for size in HEAD_DIMS
            for kind in ("f16", "bf16")
        ),
    ]
