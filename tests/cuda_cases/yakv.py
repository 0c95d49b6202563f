"""Rows that YAKV selected: the cache of them, gathering them from the host, attending to them."""

from __future__ import annotations

import math

import numpy as np

from yakvrt.cuda.kernel_list import ROW_SIZES, YAKV_ATTENTION
from yakvrt.higgs_grids import load_grid
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.attend_fragments import head_blocks
from yakvrt.kernels.higgs_layout import ROW_FORMATS, row_bytes
from yakvrt.kernels.higgs_rows import decode_rows_ref
from yakvrt.kernels.merge_partials import merge_partials_ref
from yakvrt.kernels.yakv_fetch import forget_ref, yakv_fetch_ref
from yakvrt.kernels.yakv_fetch_cuda import directory_words

from .arrays import RNG, count, normal, poisoned, sample
from .attention import compare_heads
from .case import LINK, Case, Launch, Sized, compare, sized, untouched


class Directories:
    """The caches of the heads of slots, launches over them, and what the truth makes of them."""

    def __init__(self, n_slots: int, n_heads: int, n_places: int, n_rows: int) -> None:
        self.n_slots, self.n_heads, self.n_places, self.n_rows = n_slots, n_heads, n_places, n_rows
        self.held = np.zeros((n_slots, n_heads, directory_words(n_places, n_rows) + 3), np.int32)
        self.truths = [
            [{-1 - place: place for place in range(n_places)} for _ in range(n_heads)] for _ in range(n_slots)
        ]
        self.checks: list[tuple[str, np.ndarray, list[int]]] = []
        self.unused: list[np.ndarray] = []

    def _launch(self, builder: str, slots: list[int], outputs: list[np.ndarray], *rest: object) -> Launch:
        strides = [stride // 4 for stride in self.held.strides[:2]]
        arguments = (self.held, *strides, self.n_places, np.array([*slots, 0]), self.n_heads, *rest)
        return Launch(
            kernel("yakv_fetch_cuda", builder),
            (len(slots) + 1) * self.n_heads,
            [self.held, *outputs],
            (*arguments, count(len(slots))),
            len(slots) * self.n_heads * self.n_places * 16,
        )

    def fetch(self, slots: list[int], largest: int) -> Launch:
        """A step of random selections of up to `largest` rows; a batch row too many."""
        n_segments, n_own = (len(slots) + 1) * self.n_heads, len(slots) * self.n_heads
        counts = RNG.integers(0, largest + 1, n_segments)
        counts[0] = largest
        ids, places, missing, targets = (poisoned(n_segments, largest + 2, dtype=np.int32) for _ in range(4))
        for row, n in zip(ids, counts, strict=True):
            row[:n] = np.sort(RNG.choice(self.n_rows, n, replace=False))
        n_missing = poisoned(n_segments, dtype=np.int64)
        for segment in range(n_own):
            n, cache = counts[segment], self.truths[slots[segment // self.n_heads]][segment % self.n_heads]
            expected, absent = yakv_fetch_ref(cache, ids[segment, :n].tolist())
            self.checks += [
                ("places", places[segment, :n], list(expected)),
                ("number of missing rows", n_missing[segment : segment + 1], [len(absent)]),
                ("missing rows", missing[segment, : len(absent)], absent),
                ("targets", targets[segment, : len(absent)], [cache[row] for row in absent]),
            ]
            self.unused.append(places[segment, n:])
        self.unused.append(n_missing[n_own:])
        outputs = [places, missing, targets, n_missing]
        return self._launch("yakv_fetch_cuda", slots, outputs, ids, largest + 2, counts, *outputs)

    def forget(self, slots: list[int], first: int, last: int) -> Launch:
        for cache in (cache for slot in slots for cache in self.truths[slot]):
            forget_ref(cache, first, last)
        firsts, lasts = np.array([first] * len(slots) + [0]), np.array([last] * len(slots) + [9])
        return self._launch("yakv_forget_cuda", slots, [], firsts, lasts)

    def check(self) -> float:
        for what, found, expected in self.checks:
            compare(what, found, np.array(expected, found.dtype))
        return max(untouched("what nobody asked for", array) for array in self.unused)


def fetch_steps(n_slots: int, n_heads: int, n_places: int, n_rows: int, largest: int) -> Case:
    """Of an empty cache, of a filled one, and after rows were forgotten."""
    heads, slots = Directories(n_slots, n_heads, n_places, n_rows), list(range(n_slots - 1, -1, -1))
    launches = [heads.fetch(slots, largest), heads.fetch(slots, largest)]
    launches += [heads.forget(slots[1:], 7, min(71, n_rows)), heads.fetch(slots[:-1], largest // 2)]
    return Case(launches, heads.check)


def gather(
    row_size: int,
    n_slots: int,
    n_heads: int,
    n_rows: int,
    n_places: int,
    counts: list[int],
    grid: int,
) -> Case:
    """Rows in host memory; `counts` of every head of rows of the batch, the last row's beyond it."""
    n_segments, words = len(counts), row_size // 4
    n_batch, n_most = n_segments // n_heads - 1, max(counts)
    slots = np.array([*range(n_batch - 1, -1, -1), 0])
    rows = RNG.integers(0, 2**32, (n_slots, n_heads, n_rows, words), np.uint32)
    scales = RNG.integers(0, 2**32, (n_slots, n_heads, n_rows), np.uint32)
    ids, targets = (poisoned(n_segments, n_most + 2, dtype=np.int32) for _ in range(2))
    for segment, n in enumerate(counts):
        ids[segment, :n] = RNG.choice(n_rows, n, replace=False)
        targets[segment, :n] = RNG.choice(n_places, n, replace=False)
    out = poisoned(n_slots, n_heads, n_places, words, dtype=np.uint32)
    out_scales = poisoned(n_slots, n_heads, n_places, dtype=np.uint32)
    arrays = [
        part for x in (out, out_scales, rows, scales) for part in (x, x.strides[0] // 4, x.strides[1] // 4)
    ]
    n_own = n_batch * n_heads
    launch = Launch(
        kernel("yakv_gather_cuda", "yakv_gather_cuda", row_size),
        grid,
        [out, out_scales],
        (
            *(*arrays, slots, n_heads, ids, targets, n_most + 2),
            *(np.array(counts), count(n_batch)),
        ),
        sum(counts[:n_own]) * (row_size + 4),
        limit=LINK,
    )

    def check() -> float:
        expected, expected_scales = (
            poisoned(*out.shape, dtype=np.uint32),
            poisoned(*out_scales.shape, dtype=np.uint32),
        )
        for segment in range(n_own):
            row, head = divmod(segment, n_heads)
            n, slot = counts[segment], slots[row]
            to = slot, head, targets[segment, :n]
            expected[to], expected_scales[to] = (x[slot, head, ids[segment, :n]] for x in (rows, scales))
        compare("rows", out, expected)
        return compare("scales", out_scales, expected_scales)

    return Case([launch], check, [rows, scales])


def selected_rows_ref(
    q: np.ndarray, codes: np.ndarray, scales: np.ndarray, k_format: str, added: np.ndarray
) -> np.ndarray:
    """One KV head in float64; `added`: what the logits are beside the products with the decoded keys.

    Shapes: q [G, D], codes [n, bytes], scales [n, 2], added [G, n] -> [G, D].
    """
    head_dim, at, parts = q.shape[1], 0, []
    for i, name in enumerate((k_format, "q4")):
        row_format = ROW_FORMATS[name]
        own = codes[:, at : at + row_format.n_bytes(head_dim)]
        parts.append(
            decode_rows_ref(name, own, scales[:, i], load_grid(row_format.grid or ""), rotated=False)
        )
        at += row_format.n_bytes(head_dim)
    logits = q.astype(np.float64) @ parts[0].T / math.sqrt(head_dim) + added
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights @ parts[1] / weights.sum(axis=1, keepdims=True)


def _book(row_format: str) -> np.ndarray:
    """A grid's points as pairs."""
    return load_grid(ROW_FORMATS[row_format].grid or "").astype(np.float16).reshape(-1).view(np.uint32)


def attend(
    k_format: str,
    group: int,
    head_dim: int,
    centred: bool,
    counts: list[int],
    n_splits: int,
    n_heads: int,
    n_places: int = 150,
) -> Case:
    """`counts` rows of every row of the batch; other partials stay as they are.

    Rows of r3 lie in a cache: other places than ids, of twice as many rows.
    """
    n_rows, first = len(counts), 2
    n_slots, n_partials = n_rows + 1, first + n_splits
    width, stride = n_heads * group * head_dim, row_bytes(head_dim, k_format, "q4")
    codes = RNG.integers(0, 256, (n_slots, n_heads, n_places, stride), np.uint8)
    scales = RNG.uniform(0.02, 3, (n_slots, n_heads, n_places, 2)).astype(np.float16)
    means, q = normal(n_slots, n_heads, head_dim), normal(n_rows + 1, width + 4)
    slots = np.array([*range(n_rows, 0, -1), 99])
    n_selected = np.repeat(np.array([*counts, 10**6]), n_heads)
    ids, places = (np.full((n_rows + 1, n_heads, max(counts) + 2), 10**6, np.int32) for _ in range(2))
    for row, n in enumerate(counts):
        for head in range(n_heads):
            places[row, head, :n] = RNG.permutation(n_places)[:n]
            ids[row, head, :n] = RNG.permutation(2 * n_places)[:n]
    residual = ROW_FORMATS[k_format].residual
    logits = normal(n_rows, n_heads, group, 2 * n_places, scale=2) if residual else None
    sums = poisoned(n_rows + 1, n_heads * group, n_partials, head_dim)
    stats = poisoned(n_rows + 1, n_heads * group, n_partials, 2)
    row_words = n_places * stride // 4
    launch = Launch(
        kernel("yakv_attend_cuda", "yakv_attend_cuda", head_dim, k_format, "q4", centred),
        (n_heads * n_splits * head_blocks(group), n_rows + 1),
        [sums, stats],
        (
            *(sums, stats, first, n_partials, n_splits, q, width + 4),
            *(codes.view(np.uint32), n_heads * row_words, row_words),
            *(scales.view(np.uint32), n_heads * n_places, n_places, _book(k_format), _book("q4")),
            *(means if centred and not residual else None, n_heads * head_dim, head_dim),
            *(logits, 2 * n_places, ids if residual else None, places, places.shape[2], n_selected, slots),
            *(count(n_rows), n_heads, group, 1 / math.sqrt(head_dim)),
        ),
        sum(counts) * n_heads * (stride + 8 + (4 + 4 * group if residual else 0))
        + n_rows * width * (4 + 4 * n_splits),
        sum(counts) * n_heads * group * head_dim * 4,
    )

    def check() -> float:
        untouched("further rows", sums[n_rows:])
        untouched("other partials", stats[:, :, :first])
        worst = 0.0
        for row in sample(n_rows, 3):
            if counts[row] == 0:
                compare("weights of nothing", stats[row, :, first:, 1], np.zeros((n_heads * group, n_splits)))
                continue
            own_sums, own_stats = sums[row : row + 1, :, first:], stats[row : row + 1, :, first:]
            worst = max(worst, row_error(row, merge_partials_ref(own_sums, own_stats)[0]))
        return worst

    def row_error(row: int, found: np.ndarray) -> float:
        worst, slot = 0.0, slots[row]
        for head in sample(n_heads, 3):
            own, at = slice(head * group, (head + 1) * group), places[row, head, : counts[row]]
            heads = q[row, :width].reshape(-1, head_dim)[own]
            if logits is not None:
                added = logits[row, head][:, ids[row, head, : counts[row]]]
            else:
                added = heads.astype(np.float64) @ means[slot, head][:, None] / math.sqrt(head_dim) * centred
            expected = selected_rows_ref(
                heads, codes[slot, head, at], scales[slot, head, at], k_format, added
            )
            worst = max(worst, compare_heads(found[own], expected, 1e-3))
        return worst

    return Case([launch], check)


def small() -> list[Sized]:
    return [
        sized("fetch and forget", fetch_steps, 3, 2, 37, 90, 37),
        sized("gather", gather, 128, 3, 2, 150, 70, [70, 0, 1, 33, 5, 5], 2),
        sized("attend to selected rows", attend, "r3", 4, 64, True, [37], 1, 1),
    ]


def real() -> list[Sized]:
    """4096 rows selected of 32k, by 8 KV heads of 32 slots."""
    made = [sized("fetch and forget", fetch_steps, 8, 8, 8192, 32768, 4096)]
    for size in ROW_SIZES:
        n_rows, counts = 32768 * 128 // max(size, 128), [4096] * 256 + [5] * 8
        made.append(sized(f"gather {size} B", gather, size, 32, 8, n_rows, 4608, counts, 16))
    for head_dim, k_format, v_format in YAKV_ATTENTION:
        what = f"attend to selected rows {head_dim} {k_format} {v_format}"
        made.append(sized(what, attend, k_format, 8, head_dim, True, [4096] * 32, 4, 8, 8192))
    return made
