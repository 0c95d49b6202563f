"""Steps that read the best pages: what lengths tell, and bringing together the rows to attend to."""

from __future__ import annotations

import numpy as np

from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.page_gather import page_gather_ref
from yakvrt.kernels.page_layout import PageShape
from yakvrt.kernels.page_lengths import page_lengths_ref

from .arrays import RNG, count, poisoned, sample
from .case import COPY, LINK, Case, Launch, Sized, compare, sized, untouched

GROUP = 4
QUEST = PageShape(GROUP, 128, "bf16", 16, 0, 0, "extremes", "max")
ORACLE = PageShape(GROUP, 64, "f16", 1, 4, 63, "", "sum")
SINKS = PageShape(GROUP, 64, "bf16", 4, 8, 8, "centred", "mean")


def page_lengths(shape: PageShape, lengths: list[int], wanted: list[int], n_heads: int) -> Case:
    """A row too many."""
    n, capacity = len(lengths), len(lengths) + 1
    positions = np.array([*(length - 1 for length in lengths), 999], np.int64)
    slots = np.array([*reversed(range(n)), 0], np.int64)
    of_slots = np.array(wanted[::-1], np.int64)
    sizes, budgets, scored = (poisoned(capacity, n_heads, dtype=np.int64) for _ in range(3))
    firsts, ends, lasts = (poisoned(capacity, dtype=np.int64) for _ in range(3))
    totals, counters = poisoned(2, dtype=np.int64), np.array([10, 20, 30, 40], np.int64)
    launch = Launch(
        kernel("page_lengths", "page_lengths_cuda"),
        1,
        [sizes, budgets, scored, firsts, ends, lasts, totals, counters],
        (
            *(sizes, budgets, scored, firsts, ends, lasts, totals, counters, of_slots, slots, positions),
            *(count(n), capacity, n_heads, shape.group, shape.n_sinks, shape.window, shape.page),
            int(not shape.boxes),
        ),
    )

    def check() -> float:
        expected = page_lengths_ref(positions[:n], np.array(wanted), shape)
        for name, found in (("sizes", sizes), ("budgets", budgets), ("lengths", scored)):
            compare(name, found[:n], np.repeat(getattr(expected, name)[:, None], n_heads, 1))
            compare(f"{name} of no row", found[n:], np.zeros((1, n_heads), np.int64))
        for name, found in (("firsts", firsts), ("ends", ends), ("lasts", lasts)):
            compare(name, found[:n], getattr(expected, name))
            untouched(f"{name} of no row", found[n:])
        compare("totals", totals, np.array([n * n_heads, n * n_heads * shape.group]))
        read, chosen = (expected.lasts + 1).sum(), expected.budgets.sum() * shape.page
        counted = 10 + read * n_heads, 20 + chosen * n_heads, 30 + n, 40 + sum(lengths)
        compare("counters", counters, np.array(counted))
        return 0.0

    return Case([launch], check)


def page_gather(
    shape: PageShape, lengths: list[int], wanted: int, n_heads: int, grid: int, *, on_host: bool = True
) -> Case:
    """Slots in reverse; pages at random."""
    n, capacity = len(lengths), max(lengths) + 1
    words = shape.head_dim * (4 if shape.kind == "f32" else 2) // 4
    told = page_lengths_ref(np.array(lengths) - 1, np.full(n, wanted), shape)
    tables = [RNG.integers(0, 1 << 32, (n, n_heads, capacity, words), np.uint32) for _ in range(2)]
    rings = [RNG.integers(0, 1 << 32, (n, n_heads, shape.ring_places, words), np.uint32) for _ in range(2)]
    most, most_pages = shape.most_rows(capacity, wanted) + 1, max(1, int(told.budgets.max()))
    outs = [poisoned(n + 1, n_heads, most, words, dtype=np.uint32) for _ in range(2)]
    ids = poisoned(n + 1, n_heads, most_pages, dtype=np.int32)
    for row, head in np.ndindex(n, n_heads):
        chosen = RNG.permutation(int(told.sizes[row]))[: int(told.budgets[row])]
        ids[row, head, : len(chosen)] = np.sort(chosen)
    slots = np.array([*reversed(range(n)), 0], np.int64)

    def of_heads(values: np.ndarray) -> np.ndarray:
        return np.repeat(np.append(values, 7)[:, None], n_heads, 1)

    n_rows = int((told.lasts + 1).sum()) * n_heads
    launch = Launch(
        kernel("page_gather", "page_gather_cuda", words * 4),
        grid,
        outs,
        (
            *(*outs, most * words, *tables, n_heads * capacity * words, capacity * words),
            *(*rings, n_heads * shape.ring_places * words, shape.ring_places * words, slots, count(n)),
            *(n_heads, of_heads(told.sizes), of_heads(told.budgets), np.append(told.lasts, 7), ids),
            *(most_pages, shape.n_sinks, shape.ring_len, shape.page),
        ),
        n_rows * words * 8 * (1 if on_host else 2),
        limit=LINK if on_host else COPY,
    )

    def check() -> float:
        for out, table, ring in zip(outs, tables, rings, strict=True):
            untouched("rows of no row", out[n:])
            for row in sample(n, 4):
                held, slot = int(told.lasts[row]) + 1, slots[row]
                untouched("further rows", out[row, :, held:])
                for head in range(n_heads):
                    chosen = ids[row, head, : int(told.budgets[row])]
                    of = table[slot, head], ring[slot, head], int(told.sizes[row]), held, chosen, shape
                    compare("rows", out[row, head, :held], page_gather_ref(*of))
        return 0.0

    return Case([launch], check, pinned=tables if on_host else [])


def small() -> list[Sized]:
    return [
        sized("page lengths", page_lengths, SINKS, [1, 30, 90], [2, 4, 6], 2),
        sized("page gather", page_gather, SINKS, [3, 21, 61], 5, 2, 2),
    ]


def real() -> list[Sized]:
    return [
        sized("page lengths, 64 rows", page_lengths, QUEST, [32768] * 64, [64] * 64, 8),
        sized("page gather of 64 pages of 16 x 256 B, 8 x 8", page_gather, QUEST, [32768] * 8, 64, 8, 16),
        sized("page gather of 1024 rows of 128 B, 8 x 8", page_gather, ORACLE, [32768] * 8, 1024, 8, 16),
    ]
