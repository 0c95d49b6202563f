"""YAKV as its paper has it: what lengths tell, exact rows and rows from codes that a step attends to."""

from __future__ import annotations

import numpy as np

from yakvrt.higgs_grids import load_grid
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.higgs_code import HiggsCode, coded_width
from yakvrt.kernels.paper_exact import paper_exact_ref
from yakvrt.kernels.paper_fresh import paper_fresh_ref
from yakvrt.kernels.paper_lengths import paper_lengths_ref
from yakvrt.kernels.paper_rows import paper_rows_ref
from yakvrt.kernels.rope_table import RopeTable

from .arrays import RNG, blocks, count, from_bf16, poisoned, repeated
from .case import COPY, LINK, Case, Launch, Sized, compare, sized, untouched

DISTINCT = 509  # tokens of a slot, which many repeat
STEPS = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8}  # half a step of the number format


def paper_lengths(lengths: list[int], ends: list[int], wanted: list[int], n_sinks: int, n_heads: int) -> Case:
    """Slots in reverse; a row too many."""
    n, capacity, group = len(lengths), len(lengths) + 1, 4
    positions = np.array([*(length - 1 for length in lengths), 999], np.int64)
    slots = np.array([*reversed(range(n)), 0], np.int64)
    of_slots, ends_of_slots = np.array(wanted[::-1], np.int64), np.array(ends[::-1], np.int64)
    sizes, budgets, scored = (poisoned(capacity, n_heads, dtype=np.int64) for _ in range(3))
    found_ends, residents = (poisoned(capacity, dtype=np.int64) for _ in range(2))
    totals = poisoned(2, dtype=np.int64)
    launch = Launch(
        kernel("paper_lengths", "paper_lengths_cuda"),
        blocks(capacity, 128),
        [sizes, budgets, scored, found_ends, residents, totals],
        (
            *(sizes, budgets, scored, found_ends, residents, totals, of_slots, ends_of_slots),
            *(slots, positions),
            *(count(n), capacity, n_heads, group, n_sinks),
        ),
    )

    def check() -> float:
        expected = paper_lengths_ref(positions[:n], np.array(wanted), np.array(ends), n_sinks)
        for name, found in (("sizes", sizes), ("budgets", budgets), ("sizes", scored)):
            compare(name, found[:n], np.repeat(getattr(expected, name)[:, None], n_heads, 1))
            compare(f"{name} of no row", found[n:], np.zeros((1, n_heads), np.int64))
        for name, found in (("residents", residents), ("ends", found_ends)):
            compare(name, found[:n], getattr(expected, name))
            untouched(f"{name} of no row", found[n:])
        return compare("totals", totals, np.array([n * n_heads, n * n_heads * group]))

    return Case([launch], check)


def paper_fresh(n_units: int, budgets: list[int], n_heads: int) -> Case:
    """Heads that choose alike, and others; a row too many."""
    n, most = len(budgets), max(*budgets, 1) + 1
    ids = np.full((n + 1, n_heads, most), 5, np.int32)
    counts = np.repeat([*budgets, 3], n_heads).reshape(n + 1, n_heads).astype(np.int64)
    for row, k in enumerate(budgets):
        for head in range(n_heads):
            ids[row, head, :k] = np.sort(RNG.permutation(min(n_units, 3 * k + 1))[:k])
            ids[row, head, :k] = n_units - 1 - ids[row, head, :k][::-1]
    n_fresh = poisoned(n + 1, n_heads, dtype=np.int64)
    launch = Launch(
        kernel("paper_fresh", "paper_fresh_cuda"),
        (n + 1, 1),
        [n_fresh],
        (n_fresh, ids, most, counts, count(n), n_heads, n_units),
        ids.nbytes,
    )

    def check() -> float:
        untouched("tokens of no row", n_fresh[n:])
        for row, k in enumerate(budgets):
            compare("tokens", n_fresh[row], paper_fresh_ref(ids[row, :, :k]))
        return 0.0

    return Case([launch], check)


def paper_exact(
    row_bytes: int,
    lengths: list[int],
    ends: list[int],
    n_sinks: int,
    ring_len: int,
    n_heads: int,
    grid: int,
    far: bool = True,
) -> Case:
    """Slots in reverse, a row too many; rows in the ring are others than those of all tokens."""
    n, capacity, words = len(lengths), max(lengths) + 1, row_bytes // 4

    def table(places: int) -> tuple[list[np.ndarray], tuple[int, int]]:
        arrays = [RNG.integers(0, 1 << 32, (n, n_heads, places, words), np.uint32) for _ in range(2)]
        return arrays, (n_heads * places * words, places * words)

    (tables, strides), (rings, ring_strides) = (table(places) for places in (capacity, n_sinks + ring_len))
    positions = np.array([*(length - 1 for length in lengths), 3], np.int64)
    slots = np.array([*reversed(range(n)), 0], np.int64)
    told = paper_lengths_ref(positions[:n], np.full(n, 7), np.array(ends), n_sinks)
    outs = [poisoned(n + 1, n_heads, max(lengths) + 1, words, dtype=np.uint32) for _ in range(2)]
    counts = np.repeat([*told.budgets, 7], n_heads).reshape(n + 1, n_heads)
    lasts = poisoned(n + 1, n_heads, dtype=np.int64)
    in_tail = np.array(lengths) - np.maximum(ends, n_sinks)
    n_far = int(np.maximum(in_tail - ring_len, 0).sum()) if far else 0
    launch = Launch(
        kernel("paper_exact", "paper_exact_cuda", row_bytes),
        grid,
        [*outs, lasts],
        (
            *(*outs, (max(lengths) + 1) * words, *tables, *strides, *rings, *ring_strides),
            *(slots, positions, np.array([*ends, 2], np.int64), count(n), n_heads),
            *(np.array([*told.residents, 9], np.int64), counts, lasts, n_sinks, ring_len),
        ),
        n_heads * 2 * row_bytes * (n_far or 2 * int(told.residents.sum())),
        limit=LINK if n_far else COPY,
    )

    def check() -> float:
        untouched("lasts of no row", lasts[n:])
        for out, of_table, of_ring in zip(outs, tables, rings, strict=True):
            untouched("rows of no row", out[n:])
            for row, head in np.ndindex(min(n, 4), n_heads):
                given = of_table[slots[row], head], of_ring[slots[row], head]
                expected = paper_exact_ref(*given, lengths[row], ends[row], n_sinks, ring_len)
                compare("rows", out[row, head, : len(expected)], expected)
                untouched("further rows", out[row, head, len(expected) :])
                compare("lasts", lasts[row, head], told.residents[row] + told.budgets[row] - 1)
        return 0.0

    return Case([launch], check, pinned=tables if far else [])


def paper_rows(
    head_dim: int,
    kind: str,
    n_heads: int,
    budgets: list[int],
    n_tokens: int,
    grid: int,
    n_sinks: int = 3,
    far: bool = True,
) -> Case:
    """Slots in reverse, a row too many; tokens at random, of scales from nothing on."""
    n, code = len(budgets), HiggsCode.of("d2n256", n_heads * head_dim)
    width, distinct = coded_width(n_heads * head_dim), min(n_tokens, DISTINCT)
    codes = RNG.integers(0, 256, (n, distinct, 2, width // 2), np.uint8)
    scales = np.abs(RNG.standard_normal((n, distinct, 2))).astype(np.float16)
    scales[:, 0] = 0
    codes, scales = (repeated(x, n_tokens, 1) for x in (codes, scales))
    inv_freq = 10000.0 ** -(np.arange(head_dim // 2) / (head_dim // 2))
    rope = RopeTable(inv_freq, 1.25, n_tokens)
    points = load_grid("d2n256").astype(np.float16).view(np.uint32).reshape(-1)
    most = max(budgets) + 1
    ids = poisoned(n + 1, n_heads, most, dtype=np.int32)
    for row, head in np.ndindex(n, n_heads):
        ids[row, head, : budgets[row]] = RNG.permutation(n_tokens - n_sinks)[: budgets[row]]
    residents = np.array([*RNG.integers(0, 5, n), 9], np.int64)
    counts = np.repeat([*budgets, 3], n_heads).reshape(n + 1, n_heads).astype(np.int64)
    per_word = 1 if kind == "f32" else 2
    row_words, n_out = head_dim // per_word, most + 5
    out_type = np.float32 if kind == "f32" else np.uint32
    outs = [poisoned(n + 1, n_heads, n_out, row_words, dtype=out_type) for _ in range(2)]
    slots = np.array([*reversed(range(n)), 99], np.int64)
    launch = Launch(
        kernel("paper_rows", "paper_rows_cuda", width, head_dim, kind),
        grid,
        outs,
        (
            *(*outs, n_out * row_words, codes.view(np.uint32), scales.view(np.uint32), n_tokens, points),
            *(rope.values, slots, count(n), n_heads, residents, counts, ids, most, n_sinks),
        ),
        sum(budgets) * n_heads * (width + 4 + (0 if far else 8 * row_words)),
        limit=LINK if far else COPY,
    )

    def check() -> float:
        worst = 0.0
        for row, head in np.ndindex(min(n, 4), n_heads):
            chosen = n_sinks + ids[row, head, : budgets[row]]
            given = (x[slots[row]][chosen] for x in (codes, scales))
            columns = slice(head * head_dim, (head + 1) * head_dim)
            expected = paper_rows_ref(code, *given, rope, chosen, columns)
            for out, rows in zip(outs, expected, strict=True):
                first, last = residents[row], residents[row] + budgets[row]
                untouched("rows of others", out[row, head, :first])
                untouched("further rows", out[row, head, last:])
                found, size = numbers(out[row, head, first:last], kind), np.abs(rows).max(initial=0)
                worst = max(worst, compare("rows", found, rows, rtol=STEPS[kind], atol=3e-6 * size + 1e-7))
        for out in outs:
            untouched("rows of no row", out[n:])
        return worst

    return Case([launch], check, pinned=[codes, scales] if far else [])


def numbers(words: np.ndarray, kind: str) -> np.ndarray:
    """What rows of `kind` hold."""
    if kind == "f32":
        return words
    return from_bf16(words.view(np.uint16)) if kind == "bf16" else words.view(np.float16).astype(np.float32)


def small() -> list[Sized]:
    return [
        sized("paper lengths", paper_lengths, [1, 30, 90], [0, 9, 60], [2, 4, 60], 3, 2),
        sized("paper fresh tokens", paper_fresh, 100, [5, 0, 30], 3),
        sized("paper exact rows", paper_exact, 128, [3, 21, 61], [0, 9, 30], 3, 12, 2, 2),
        sized("paper rows", paper_rows, 64, "bf16", 4, [2, 0, 5], 40, 1),
    ]


def real() -> list[Sized]:
    """8 rows of 8 KV heads that choose 1024 of 8192 tokens."""
    lengths, ends, chosen = [8192] * 8, [7424] * 8, [1024] * 8
    made = [
        sized("paper lengths, 64 rows", paper_lengths, [32768] * 64, [32000] * 64, [1024] * 64, 4, 8),
        sized("paper fresh tokens, 8 x 8 x 1024", paper_fresh, 8192, chosen, 8),
        sized("paper exact rows, 8 x 8 x 772", paper_exact, 256, lengths, ends, 4, 1088, 8, 264, False),
        sized("paper exact rows, a third far", paper_exact, 256, lengths, ends, 4, 512, 8, 264),
    ]
    sizes = chosen, 8192, 264, 4
    return made + [
        sized(f"paper rows 8 x {head_dim} {kind}, far {far}", paper_rows, head_dim, kind, 8, *sizes, far)
        for head_dim, kind in ((64, "f16"), (128, "bf16"))
        for far in (False, True)
    ]
