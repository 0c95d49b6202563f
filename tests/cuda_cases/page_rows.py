"""Steps that read the best pages: what lengths tell, and bringing together the rows to attend to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.chosen_rows import replace_missing
from yakvrt.kernels.page_gather import page_gather_ref
from yakvrt.kernels.page_layout import PageShape
from yakvrt.kernels.page_lengths import page_lengths_ref
from yakvrt.kernels.page_project import page_near_ref, page_project_ref

from .arrays import RNG, blocks, count, normal, poisoned
from .case import COPY, LINK, Case, Launch, Sized, compare, sized, untouched

GROUP = 4
QUEST = PageShape(GROUP, 128, "bf16", 16, 0, 0, "extremes", "max")
ORACLE = PageShape(GROUP, 64, "f16", 1, 4, 63, "", "sum")
SINKS = PageShape(GROUP, 64, "bf16", 4, 8, 8, "centred", "mean")
LRQK = PageShape(1, 64, "bf16", 1, 0, 15, "factors", "mean", 16, sharing=2)


def page_lengths(
    shape: PageShape, lengths: list[int], wanted: list[int], n_heads: int, places: int = 1 << 20
) -> Case:
    """A row too many."""
    n, capacity = len(lengths), len(lengths) + 1
    positions = np.array([*(length - 1 for length in lengths), 999], np.int64)
    slots = np.array([*reversed(range(n)), 0], np.int64)
    of_slots, in_use = np.array(wanted[::-1], np.int64), np.full(n, places)
    sizes, budgets, scored = (poisoned(capacity, n_heads, dtype=np.int64) for _ in range(3))
    firsts, ends, residents = (poisoned(capacity, dtype=np.int64) for _ in range(3))
    totals = poisoned(2, dtype=np.int64)
    launch = Launch(
        kernel("page_lengths", "page_lengths_cuda"),
        blocks(capacity, 128),
        [sizes, budgets, scored, firsts, ends, residents, totals],
        (
            *(sizes, budgets, scored, firsts, ends, residents, totals, of_slots, in_use, slots, positions),
            *(
                count(n),
                capacity,
                n_heads,
                shape.group,
                shape.n_sinks,
                shape.window,
                shape.page,
                int(shape.proxy == "key"),
            ),
        ),
    )

    def check() -> float:
        expected = page_lengths_ref(positions[:n], np.array(wanted), in_use, shape)
        for name, found in (("sizes", sizes), ("budgets", budgets), ("lengths", scored)):
            compare(name, found[:n], np.repeat(getattr(expected, name)[:, None], n_heads, 1))
            compare(f"{name} of no row", found[n:], np.zeros((1, n_heads), np.int64))
        for name, found in (("firsts", firsts), ("ends", ends), ("residents", residents)):
            compare(name, found[:n], getattr(expected, name))
            untouched(f"{name} of no row", found[n:])
        return compare("totals", totals, np.array([n * n_heads, n * n_heads * shape.group]))

    return Case([launch], check)


def page_count(n: int, n_heads: int, page: int) -> Case:
    """What is counted already remains; a row too many."""
    lasts, budgets, n_fresh = (RNG.integers(0, 500, (n + 1, n_heads)) for _ in range(3))
    positions, counters = RNG.integers(0, 5000, n + 1), np.array([1 << 40, 20, 30, 40, 50], np.int64)
    before = counters.copy()
    launch = Launch(
        kernel("page_lengths", "page_count_cuda"),
        1,
        [counters],
        (counters, lasts, budgets, n_fresh, positions, count(n), n_heads, page),
    )

    def check() -> float:
        chosen, fresh = budgets[:n].sum() * page, n_fresh[:n].sum() * page
        added = (lasts[:n] + 1).sum(), chosen, chosen - fresh, n, (positions[:n] + 1).sum()
        return compare("counters", counters, before + np.array(added))

    return Case([launch], check)


def page_recall(sizes: list[int], budget: int, n_places: list[int], n_heads: int) -> Case:
    """Slots in reverse, whose caches hold some pages; equal weights."""
    n, most, longest = len(sizes), max(*n_places, 1) + 1, max(sizes)
    recalled = np.full((n, n_heads, most), -1, np.int32)
    weights = np.round(normal(n + 1, n_heads, longest), 1)
    ids, budgets = np.full((n + 1, n_heads, budget), 77, np.int32), np.zeros((n + 1, n_heads), np.int64)
    slots = np.array([*reversed(range(n)), 0], np.int64)
    for row, head in np.ndindex(n, n_heads):
        k, places = min(budget, sizes[row], n_places[row]), n_places[row]
        budgets[row, head] = k
        ids[row, head, :k] = np.sort(RNG.permutation(sizes[row])[:k])
        n_held = int(RNG.integers(0, min(places, sizes[row]) + 1))
        recalled[slots[row], head, :n_held] = RNG.permutation(sizes[row])[:n_held]
    before, in_use = recalled.copy(), np.array(n_places[::-1], np.int64)
    fresh = poisoned(n + 1, n_heads, most, dtype=np.int32)
    n_fresh, n_filled = (poisoned(n + 1, n_heads, dtype=np.int64) for _ in range(2))
    scratch = [np.zeros((n + 1, n_heads, budget), np.int32) for _ in range(3)]
    order = np.zeros((n + 1, n_heads, most), np.float32)
    launch = Launch(
        kernel("page_recall", "page_recall_cuda"),
        ((n + 1) * n_heads, 1),
        [recalled, fresh, n_fresh, n_filled],
        (
            *(
                recalled,
                n_heads * most,
                most,
                in_use,
                slots,
                count(n),
                n_heads,
                ids,
                budget,
                budgets,
                weights,
            ),
            *(longest, fresh, most, n_fresh, n_filled, scratch[0], order, *scratch[1:]),
        ),
    )

    def check() -> float:
        untouched("rows of no row", n_fresh[n:])
        for row, head in np.ndindex(n, n_heads):
            slot, places, k = slots[row], n_places[row], int(budgets[row, head])
            expected = before[slot, head, :places][None].copy()
            keep = weights[row, head][np.maximum(expected, 0)]
            told = replace_missing(expected, ids[row, head, :k][None], longest, keep)
            came = np.zeros(places, np.int32)
            came[told[1]] = 1
            compare("pages", recalled[slot, head, :places], expected[0])
            compare("places not in use", recalled[slot, head, places:], before[slot, head, places:])
            compare("fresh places", fresh[row, head, :places], came)
            compare("fresh pages", n_fresh[row, head : head + 1], count(len(told[2])))
            compare("places filled", n_filled[row, head : head + 1], count(int((expected >= 0).sum())))
        return 0.0

    return Case([launch], check)


def page_gather(
    shape: PageShape,
    lengths: list[int],
    n_pages: int,
    n_heads: int,
    grid: int,
    cached: bool,
    far: bool = True,
) -> Case:
    """Slots in reverse; pages at random. With a cache its first pages, some of them fresh."""
    sharing = shape.sharing
    n, capacity = len(lengths), max(lengths) + 1
    words = shape.head_dim * (4 if shape.kind == "f32" else 2) // 4
    told = page_lengths_ref(np.array(lengths) - 1, *np.full((2, n), n_pages), shape)

    def table(places: int, of: int) -> tuple[list[np.ndarray], tuple[int, int]]:
        arrays = [RNG.integers(0, 1 << 32, (n, of, places, words), np.uint32) for _ in range(2)]
        return arrays, (of * places * words, places * words)

    tables, strides = table(capacity, n_heads // sharing)
    rings, ring_strides = table(shape.ring_places, n_heads // sharing)
    caches, cache_strides = table(n_pages * shape.page + 1, n_heads)
    held = [cache.copy() for cache in caches]
    most = shape.most_rows(capacity, n_pages) + 1
    outs = [poisoned(n + 1, n_heads, most, words, dtype=np.uint32) for _ in range(2)]
    lasts, counts = poisoned(n + 1, n_heads, dtype=np.int64), np.full((n + 1, n_heads), 7, np.int64)
    ids, fresh = (poisoned(n + 1, n_heads, n_pages, dtype=np.int32) for _ in range(2))
    slots = np.array([*reversed(range(n)), 0], np.int64)
    for row, head in np.ndindex(n, n_heads):
        counts[row, head] = k = max(0, int(told.budgets[row]) - (head if cached else 0))
        owner = slots[row] if cached else row
        ids[owner, head, :k] = RNG.permutation(int(told.sizes[row]))[:k]
        fresh[row, head, :k] = RNG.integers(0, 2, k)
    launch = Launch(
        kernel("page_gather", "page_gather_cuda", words * 4, cached),
        grid,
        [*outs, lasts, *(caches if cached else [])],
        (
            *(*outs, most * words, *tables, *strides, *rings, *ring_strides),
            *((*caches, *cache_strides) if cached else (None, None, 0, 0)),
            *(slots, count(n), n_heads, sharing, np.repeat(told.sizes, n_heads), told.residents, counts),
            *(lasts, ids, n_heads * n_pages, n_pages, fresh if cached else None, n_pages if cached else 0),
            *(shape.n_sinks, shape.ring_len, shape.page),
        ),
        int(told.residents.sum() * n_heads + counts[:n].sum() * shape.page) * words * 8 * (1 if far else 2),
        limit=LINK if far else COPY,
    )

    def check() -> float:
        untouched("lasts of no row", lasts[n:])
        for which, (out, cache) in enumerate(zip(outs, caches, strict=True)):
            untouched("rows of no row", out[n:])
            for row, head in np.ndindex(min(n, 4), n_heads):
                slot, k, page = slots[row], int(counts[row, head]), shape.page
                pages = ids[slot if cached else row, head, :k]
                of = tables[which][slot, head // sharing], rings[which][slot, head // sharing]
                of_row = int(told.sizes[row]), int(told.residents[row])
                expected = page_gather_ref(*of, *of_row, pages, shape)
                left = held[which][slot, head].copy()
                if cached:
                    came = np.repeat(fresh[row, head, :k] > 0, page)
                    chosen = expected[of_row[1] :]
                    chosen[~came] = left[: k * page][~came]
                    left[: k * page] = chosen
                compare("rows", out[row, head, : len(expected)], expected)
                untouched("further rows", out[row, head, len(expected) :])
                compare("the cache", cache[slot, head], left)
                compare("lasts", lasts[row, head : head + 1], count(len(expected) - 1))
        return 0.0

    return Case([launch], check, pinned=tables if far else [])


def page_project(head_dim: int, n_channels: int, n_heads: int, group: int, n_rows: int) -> Case:
    """Slots in reverse; a row too many."""
    x, skew = (
        normal(n_rows + 1, n_heads * group * head_dim + 4),
        normal(n_rows, n_heads, head_dim, n_channels),
    )
    out = poisoned(n_rows + 1, n_heads * group * n_channels)
    slots = np.array([*reversed(range(n_rows)), 99], np.int64)
    head = head_dim * n_channels
    launch = Launch(
        kernel("page_project", "page_project_cuda", head_dim),
        (n_heads * group, n_rows + 1),
        [out],
        (out, x, x.shape[1], skew, n_heads * head, head, slots, count(n_rows), n_channels, group),
        skew.nbytes + x.nbytes,
    )

    def check() -> float:
        untouched("rows of no row", out[n_rows:])
        worst = 0.0
        for row in range(min(n_rows, 4)):
            given = x[row, :-4].reshape(n_heads, group, head_dim)
            expected = page_project_ref(given, skew[slots[row]]).reshape(-1)
            worst = max(worst, compare("channels", out[row], expected, rtol=1e-4, atol=1e-4))
        return worst

    return Case([launch], check)


def page_near(lengths: list[int], n_heads: int, group: int, alpha: float) -> Case:
    """Budgets above and below; a row too many."""
    n, longest, n_parts = len(lengths), max(lengths) + 1, 3
    logits = normal(n + 1, n_heads * group, longest, scale=3)
    parts = np.full((n + 1, n_heads * group, n_parts, 2), -1e30, np.float32)
    budgets = np.repeat([*([3, 1000] * n)[:n], 7], n_heads).reshape(n + 1, n_heads)
    before = budgets.copy()
    for row, length in enumerate(lengths):
        if length:
            parts[row, :, row % n_parts, 0] = logits[row, :, :length].max(axis=1)
    held = np.repeat([*lengths, 9], n_heads)
    launch = Launch(
        kernel("page_project", "page_near_cuda"),
        (n + 1, 1),
        [budgets],
        (budgets, held, logits, longest, parts, n_parts, alpha, count(n), n_heads, group),
        sum(lengths) * n_heads * group * 4,
    )

    def check() -> float:
        for row, length in enumerate(lengths):
            most = page_near_ref(logits[row, :, :length], alpha) if length else 1 << 40
            compare("budgets", budgets[row], np.minimum(before[row], most))
        return compare("budgets of no row", budgets[n:], before[n:])

    return Case([launch], check)


def small() -> list[Sized]:
    return [
        sized("page lengths", page_lengths, SINKS, [1, 30, 90], [2, 4, 6], 2),
        sized("page count", page_count, 3, 2, 4),
        sized("page project", page_project, 64, 16, 2, 2, 2),
        sized("page near", page_near, [0, 300, 20], 2, 2, 2.0),
        sized("page recall", page_recall, [9, 5], 3, [4, 3], 2),
        sized("page gather", page_gather, replace(SINKS, page=8, window=8), [3, 21, 61], 3, 2, 2, False),
        sized("page gather with a cache", page_gather, SINKS, [3, 21, 61], 5, 2, 2, True, False),
    ]


def real() -> list[Sized]:
    lengths, pages, rows = [8192] * 8, "64 pages of 16 x 256 B, 8 x 8", "1024 rows of 128 B, 8 x 8"
    return [
        sized("page lengths, 64 rows", page_lengths, QUEST, [32768] * 64, [64] * 64, 8),
        sized("page count, 64 rows", page_count, 64, 8, 16),
        sized("page project, 8 x 32 heads of 128 to 32", page_project, 128, 32, 8, 4, 8),
        sized("page near, 8 x 32 x 32768", page_near, [32768] * 8, 8, 4, 4.0),
        sized("page recall, 64 of 128 pages, 8 x 8", page_recall, [2048] * 8, 64, [128] * 8, 8),
        sized(f"page gather of {pages}", page_gather, QUEST, lengths, 64, 8, 16, False),
        sized(f"page gather with a cache of {pages}", page_gather, QUEST, lengths, 64, 8, 16, True),
        sized(f"page gather of {rows}", page_gather, ORACLE, lengths, 1024, 8, 16, False),
    ]
