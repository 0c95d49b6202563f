"""Steps that read the best chunks: what counts tell, values that come, keys of low rank, and bringing
together the rows to attend to.
"""

from __future__ import annotations

import numpy as np

from yakvrt.cuda.kernel_list import ATTENTION
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.chunk_gather import chunk_gather_ref
from yakvrt.kernels.chunk_lengths import chunk_lengths_ref
from yakvrt.kernels.chunk_values import chunk_values_ref
from yakvrt.kernels.low_rank_keys import LowRankKeys, low_rank_keys_ref
from yakvrt.kernels.rope_table import RopeTable

from .arrays import RNG, bf16_words, blocks, count, normal, poisoned, sample
from .attention import NEVER_USED
from .case import COPY, LINK, PRODUCT, Case, Launch, Sized, compare, sized, untouched
from .pages import TOLERANCES, numbers


def slots_of(n: int) -> np.ndarray:
    """In reverse, and of a row too many."""
    return np.array([*reversed(range(n)), 99], np.int64)


def chunk_lengths(
    n_others: list[list[int]], wanted: list[int], places: list[int], group: int, most_chunks: int
) -> Case:
    """n_others by row and head; a row too many."""
    n, n_heads = len(n_others), len(n_others[0])
    slots, capacity = slots_of(n), n + 1
    counts = np.stack([n_others, np.array(n_others) + 3], axis=2).astype(np.int32)
    of_slots = [np.array(given[::-1], np.int64) for given in (wanted, places)]
    sizes, budgets, lengths = (poisoned(capacity, n_heads, dtype=np.int64) for _ in range(3))
    firsts, ends = (poisoned(capacity, dtype=np.int64) for _ in range(2))
    totals = poisoned(2, dtype=np.int64)
    launch = Launch(
        kernel("chunk_lengths", "chunk_lengths_cuda"),
        blocks(capacity * n_heads, 128),
        [sizes, budgets, lengths, firsts, ends, totals],
        (
            *(sizes, budgets, lengths, firsts, ends, totals, np.ascontiguousarray(counts[::-1]), *of_slots),
            *(slots, count(n), capacity, n_heads, group, most_chunks),
        ),
    )

    def check() -> float:
        told, chosen = chunk_lengths_ref(counts, np.array(wanted), np.array(places))
        for name, found, expected in (
            ("sizes", sizes, told),
            ("budgets", budgets, chosen),
            ("lengths", lengths, told),
        ):
            compare(name, found[:n], expected)
            compare(f"{name} of no row", found[n:], np.zeros((1, n_heads), np.int64))
        untouched("firsts and ends of no row", np.array([firsts[n], ends[n]]))
        compare("firsts", firsts[:n], np.zeros(n, np.int64))
        compare("ends", ends[:n], np.full(n, most_chunks))
        return compare("totals", totals, np.array([n * n_heads, n * n_heads * group]))

    return Case([launch], check)


class Caches:
    """Of every slot, and of a row too many: chunks in the places of a cache, and which of them came. Some
    heads have fewer; what is beyond them leads nowhere.
    """

    def __init__(self, n_rows: int, n_heads: int, most_places: int, n_chunks: int) -> None:
        self.most_places, self.n_chunks, heads = most_places, n_chunks, (n_rows, n_heads)
        self.n_filled = np.full((n_rows + 1, n_heads), most_places, np.int64)
        self.n_filled[:n_rows] -= RNG.integers(0, 2, heads)
        self.fresh = np.ones((n_rows + 1, n_heads, most_places), np.int32)
        self.fresh[:n_rows] = RNG.integers(0, 2, (*heads, most_places))
        self.numbers = np.stack([RNG.permutation(n_chunks) for _ in range(n_rows * n_heads)])
        self.numbers = self.numbers.reshape(*heads, n_chunks).astype(np.int32)
        drawn = [RNG.permutation(n_chunks)[:most_places] for _ in range(n_rows * n_heads)]
        self.recalled = np.stack(drawn).reshape(*heads, most_places).astype(np.int32)
        self.slots = slots_of(n_rows)
        for row, head in np.ndindex(heads):
            self.recalled[self.slots[row], head, self.n_filled[row, head] :] = 1 << 30

    def arguments(self) -> tuple[object, ...]:
        n_heads, n_chunks, most_places = self.numbers.shape[1], self.n_chunks, self.most_places
        return (
            *(self.numbers, n_heads * n_chunks, n_chunks),
            *(self.recalled, n_heads * most_places, most_places, self.fresh, most_places, self.n_filled),
        )

    def of(self, row: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """The places that came, and the numbers of their chunks."""
        places = np.flatnonzero(self.fresh[row, head, : self.n_filled[row, head]])
        slot = self.slots[row]
        return places, self.numbers[slot, head][self.recalled[slot, head, places]]

    @property
    def n_fresh(self) -> int:
        heads = self.fresh[: len(self.slots) - 1].shape[:2]
        return sum(len(self.of(row, head)[0]) for row, head in np.ndindex(heads))


def chunk_values(n_rows: int, n_heads: int, places: int, chunks: int, pieces: int, grid: int) -> Case:
    cache = Caches(n_rows, n_heads, places, chunks)
    values = RNG.integers(0, 1 << 32, (n_rows, n_heads, chunks, 4 * pieces), np.uint32)
    held = RNG.integers(0, 1 << 32, (n_rows, n_heads, places + 1, 4 * pieces), np.uint32)
    before, (own, all_values) = held.copy(), ((places + 1) * 4 * pieces, chunks * 4 * pieces)
    launch = Launch(
        kernel("chunk_values", "chunk_values_cuda"),
        grid,
        [held],
        (
            *(held, n_heads * own, own, values, n_heads * all_values, all_values, *cache.arguments()),
            *(cache.slots, count(n_rows), n_heads, pieces),
        ),
        cache.n_fresh * pieces * 16,
        limit=LINK,
    )

    def check() -> float:
        for row, head in np.ndindex(n_rows, n_heads):
            slot, n = cache.slots[row], int(cache.n_filled[row, head])
            of = before[slot, head, :n], cache.numbers[slot, head], cache.recalled[slot, head, :n]
            expected = chunk_values_ref(values[slot, head], *of, cache.fresh[row, head, :n])
            compare("values", held[slot, head, :n], expected)
            compare("other places", held[slot, head, n:], before[slot, head, n:])
        return 0.0

    return Case([launch], check, pinned=[values])


def low_rank_keys(
    head_dim: int, kind: str, rank: int, page: int, n_rows: int, n_heads: int, places: int, chunks: int
) -> Case:
    """Rows of low rank of chunks that are not used are no numbers."""
    cache, n_tokens, padded = Caches(n_rows, n_heads, places, chunks), chunks * page, blocks(rank, 8) * 8
    left, basis = np.zeros((n_rows, n_tokens, padded)), np.zeros((n_rows, n_heads, padded, head_dim))
    left[..., :rank], basis[..., :rank, :] = (
        normal(n_rows, n_tokens, rank),
        normal(n_rows, n_heads, rank, head_dim),
    )
    (left, left_words), (basis, basis_words) = (bf16_words(x.astype(np.float32)) for x in (left, basis))
    for slot in range(n_rows):
        used = np.zeros(chunks, bool)
        for head in range(n_heads):
            used[cache.of(n_rows - 1 - slot, head)[1]] = True
        left_words[slot, np.repeat(~used, page)] = NEVER_USED
    rope = RopeTable(normal(head_dim // 2), 1.25, n_tokens)
    n_words = head_dim // (1 if kind == "f32" else 2)
    dtype = np.dtype(np.float32 if kind == "f32" else np.uint32)
    held = poisoned(n_rows, n_heads, (places + 1) * page, n_words, dtype=dtype)
    own = (places + 1) * page * head_dim
    launch = Launch(
        kernel("low_rank_keys", "low_rank_keys_cuda", head_dim, kind),
        (blocks(places, 4), (n_rows + 1) * n_heads),
        [held],
        (
            *(held, n_heads * own, own, left_words, n_tokens * padded),
            *(basis_words, n_heads * padded * head_dim, padded * head_dim, padded, rope.values),
            *(*cache.arguments(), cache.slots, count(n_rows), n_heads, page),
        ),
        n_operations=2 * cache.n_fresh * page * padded * head_dim,
        limit=PRODUCT,
    )

    def check() -> float:
        worst = 0.0
        for row in sample(n_rows, 2):
            slot = cache.slots[row]
            keys = LowRankKeys(left[slot], basis[slot])
            for head in range(n_heads):
                came, of_chunks = cache.of(row, head)
                positions = (of_chunks[:, None] * page + np.arange(page)).reshape(-1)
                heads = np.full(len(positions), head)
                expected = low_rank_keys_ref(keys, rope, heads, positions)
                places_of = held[slot, head].reshape(places + 1, page, n_words)
                found = numbers(places_of[came].reshape(-1, n_words), kind)
                size = {"rtol": TOLERANCES[kind], "atol": 1e-6 * rank}
                worst = max(worst, compare("keys", found, expected, **size))
                untouched("other places", np.delete(places_of, came, axis=0))
        return worst

    return Case([launch], check)


def chunk_gather(
    row_bytes: int,
    page: int,
    ring_len: int,
    counts: list[tuple[int, int]],
    sizes: list[int],
    places: int,
    grid: int,
    most_rows: int = 0,
    n_heads: int = 2,
) -> Case:
    """counts, of rows, of chunks that can be chosen and of all: a second head can choose one less. Rows that
    lie in the ring are not in the table of all rows, and the ring's others are never read.
    """
    n, words, most_outliers = len(sizes), row_bytes // 4, max(b - a for a, b in counts) + 1
    slots, longest, capacity = slots_of(n), max(sizes), most_rows or max(sizes) + 1
    positions = np.array([*(size - 1 for size in sizes), 10**6], np.int64)
    whole = RNG.integers(0, 1 << 32, (2, n, n_heads, longest, words), np.uint32)
    rows, rings = whole.copy(), np.full((2, n, n_heads, ring_len, words), NEVER_USED, np.uint32)
    for row, size in enumerate(sizes):
        for position in range(max(0, size - ring_len), size):
            rings[:, slots[row], :, position % ring_len] = whole[:, slots[row], :, position]
            rows[:, slots[row], :, position] = NEVER_USED
    outliers = RNG.integers(0, 1 << 32, (2, n, n_heads, most_outliers * page, words), np.uint32)
    caches = RNG.integers(0, 1 << 32, (2, n, n_heads, places * page, words), np.uint32)
    told = np.zeros((n, n_heads, 2), np.int32)
    for row, (n_others, n_chunks) in enumerate(counts):
        told[slots[row]] = [(max(0, n_others - head % 2), n_chunks) for head in range(n_heads)]
    n_filled = np.full((n + 1, n_heads), places, np.int64)
    n_filled[:n] = np.minimum(places, told[slots[:n], :, 0])
    outs = [poisoned(n + 1, n_heads, capacity + 1, words, dtype=np.uint32) for _ in range(2)]
    lasts = poisoned(n + 1, n_heads, dtype=np.int64)

    own = {id(x): tuple(np.ascontiguousarray(half) for half in x) for x in (rows, rings, outliers, caches)}
    tables = []
    for x in (rows, rings, outliers, caches):
        head = x.shape[3] * words
        tables += [*own[id(x)], n_heads * head, head]
    n_read = [
        ((size - b * page) * n_heads + int((b - told[slots[row], :, 0]).sum() + n_filled[row].sum()) * page)
        for row, (size, (_, b)) in enumerate(zip(sizes, counts, strict=True))
    ]
    launch = Launch(
        kernel("chunk_gather", "chunk_gather_cuda", row_bytes),
        grid,
        [*outs, lasts],
        (
            *(*outs, (capacity + 1) * words, capacity, *tables, told, most_outliers, n_filled, lasts),
            *(slots, positions, count(n), n_heads, ring_len, page),
        ),
        sum(n_read) * row_bytes * 4,
        limit=COPY,
    )

    def check() -> float:
        untouched("lasts of no row", lasts[n:])
        for which, out in enumerate(outs):
            untouched("rows of no row", out[n:])
            for row, head in np.ndindex(min(n, 4), n_heads):
                slot = slots[row]
                of_head = int(told[slot, head, 0]), int(told[slot, head, 1])
                cached = caches[which, slot, head, : n_filled[row, head] * page]
                of = whole[which, slot, head], outliers[which, slot, head], cached
                expected = chunk_gather_ref(*of, sizes[row], of_head, page)[:capacity]
                compare("rows", out[row, head, : len(expected)], expected)
                untouched("further rows", out[row, head, len(expected) :])
                compare("lasts", lasts[row, head : head + 1], count(len(expected) - 1))
        return 0.0

    return Case([launch], check, pinned=list(own[id(rows)]))


def small() -> list[Sized]:
    return [
        sized("chunk lengths", chunk_lengths, [[4, 3], [0, 0]], [2, 2], [3, 3], 2, 9),
        sized("chunk values", chunk_values, 2, 2, 3, 5, 20, 2),
        sized("low-rank keys", low_rank_keys, 64, "bf16", 12, 4, 2, 2, 3, 5),
        sized("chunk gather", chunk_gather, 128, 4, 10, [(3, 4), (0, 0)], [33, 5], 2, 2),
    ]


def real() -> list[Sized]:
    """8 rows of 8 KV heads: 8192 tokens in chunks of 8, of which 256 are chosen, rank 160."""
    made = [
        sized("chunk lengths, 64 rows", chunk_lengths, [[4000] * 8] * 64, [256] * 64, [256] * 64, 4, 4096),
        sized("chunk values, half of 256 of 8 x 256 B, 8 x 8", chunk_values, 8, 8, 256, 1024, 128, 264),
    ]
    for head_dim, kind in ATTENTION:
        what = f"low-rank keys {head_dim} {kind}, half of 256 of 8, 4 x 8"
        made.append(sized(what, low_rank_keys, head_dim, kind, 160, 8, 4, 8, 256, 1024))
    what = "chunk gather of 2500 rows of 256 B, 8 x 8"
    counts, sizes = [(1020 - 48, 1020)] * 8, [8192] * 8
    return [*made, sized(what, chunk_gather, 256, 8, 1072, counts, sizes, 256, 264, 0, 8)]
