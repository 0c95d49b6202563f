"""Attention over resident rows: decode in partials, joining them, prompts; the one without tensor cores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from yakvrt.cuda.kernel_list import ATTENTION, PLAIN_ATTENTION
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.attend import attend_ref
from yakvrt.kernels.attend_fragments import head_blocks
from yakvrt.kernels.attend_prefill_cuda import prefill_tokens_cuda
from yakvrt.kernels.merge_partials import merge_partials_ref
from yakvrt.kernels.yakv_layout import indexed_end, ring_place

from .arrays import RNG, blocks, count, normal, poisoned, repeated, sample, stored
from .case import PRODUCT, Case, Launch, Sized, compare, sized, untouched

DISTINCT = 4093  # positions of a long history, which repeats them
NEVER_USED = 0xFFFFFFFF  # NaN behind the newest row


@dataclass(frozen=True)
class Cache:
    """Keys or values of slots; `words` are the kernel's, float32 or pairs of halves, and hold more positions.

    Shapes: distinct [slots, Hk, positions, D].
    """

    distinct: np.ndarray
    words: np.ndarray
    strides: tuple[int, int]  # of slots and heads, in numbers
    exact: Callable[[int], np.ndarray] = np.arange  # which of n positions are held

    def rows(self, slot: int, n: int) -> np.ndarray:
        """Shapes: -> [n, Hk, D] of a cache of all positions."""
        return self.distinct[slot][:, self.exact(n) % self.distinct.shape[2]].transpose(1, 0, 2)


def make_cache(kind: str, lengths: list[int], n_heads: int, capacity: int, head_dim: int) -> Cache:
    """A slot for each length; what lies behind it is no number."""
    distinct, words = stored(normal(len(lengths), n_heads, min(capacity, DISTINCT), head_dim), kind)
    words = repeated(words, capacity, 2)
    for slot, length in enumerate(lengths):
        words.view(np.uint32)[slot, :, length:] = NEVER_USED
    return Cache(distinct, words, (n_heads * capacity * head_dim, capacity * head_dim))


def exact_positions(n: int, n_sinks: int, window: int) -> np.ndarray:
    """Those that YAKV keeps as they are while its step over n tokens runs."""
    positions = np.arange(n)
    return positions[(positions < n_sinks) | (positions >= indexed_end(n - 1, n_sinks, window))]


def make_ring(kind: str, lengths: list[int], n_heads: int, head_dim: int, n_sinks: int, window: int) -> Cache:
    """As make_cache, with the exact positions alone: sinks, then a ring of window + 64 places."""
    n_distinct = min(max(lengths), DISTINCT, 509)  # more than a ring holds
    distinct, stored_words = stored(normal(len(lengths), n_heads, n_distinct, head_dim), kind)
    places = n_sinks + window + 64
    words = np.full((len(lengths), n_heads, places, stored_words.shape[-1]), 0, stored_words.dtype)
    words.view(np.uint32)[...] = NEVER_USED
    for slot, length in enumerate(lengths):
        held = exact_positions(length, n_sinks, window)
        places_of = [ring_place(int(p), n_sinks, n_sinks, window + 64) for p in held]
        words[slot, :, places_of] = stored_words[slot, :, held % n_distinct]
    strides = (n_heads * places * head_dim, places * head_dim)
    return Cache(distinct, words, strides, partial(exact_positions, n_sinks=n_sinks, window=window))


def compare_heads(found: np.ndarray, expected: np.ndarray, tolerance: float, mean: float = 0) -> float:
    """Errors relative to the size of a head's result, which shrinks as histories grow; also their mean.

    Shapes: [..., D].
    """
    size = np.sqrt((expected**2).mean(axis=-1, keepdims=True))
    found, expected = found.reshape(expected.shape) / size, expected / size
    worst = compare("heads", found, expected, atol=tolerance)
    if mean:
        off = np.abs(found - expected).mean(keepdims=True)
        worst = max(worst, compare("mean error", off, np.zeros(off.shape), atol=mean))
    return worst


def decode_attention(
    group: int,
    head_dim: int,
    kind: str,
    lengths: tuple[int, ...],
    n_splits: int,
    n_heads: int = 2,
    ring: tuple[int, int] = (0, 0),
) -> Case:
    """Partials among others, which stay as they are; rows in slots of another order, and a row too many.
    ring: numbers of sinks and of the window, if the caches are rings.
    """
    n_rows, first, capacity = len(lengths), 1, max(lengths) + 3
    n_partials, width = first + n_splits + 1, n_heads * group * head_dim
    held = [0, *reversed(lengths)]
    k, v = (
        make_ring(kind, held, n_heads, head_dim, *ring)
        if ring[1]
        else make_cache(kind, held, n_heads, capacity, head_dim)
        for _ in range(2)
    )
    n_held = sum(len(k.exact(length)) for length in lengths)
    q = normal(n_rows + 1, width + 4)
    slots = np.array([*range(n_rows, 0, -1), 99], np.int64)
    positions = np.array([length - 1 for length in lengths] + [10**6], np.int64)
    sums = poisoned(n_rows + 1, n_heads * group, n_partials, head_dim)
    stats = poisoned(n_rows + 1, n_heads * group, n_partials, 2)
    launch = Launch(
        kernel("attend_decode_cuda", "attend_decode_cuda", head_dim, kind, ring[1] > 0),
        (n_heads * n_splits * head_blocks(group), n_rows + 1),
        [sums, stats],
        (
            *(sums, stats, first, n_partials, n_splits, q, width + 4, k.words, v.words, *k.strides),
            *(slots, positions, count(n_rows), n_heads, group, 1 / math.sqrt(head_dim), *ring),
        ),
        n_held * n_heads * head_dim * 4 + n_rows * width * (4 + 4 * n_splits),
        n_held * n_heads * group * head_dim * 4,
    )

    def check() -> float:
        own = slice(first, first + n_splits)
        untouched("further rows", sums[n_rows:])
        untouched("other partials", stats[:, :, [0, -1]])
        joined = merge_partials_ref(sums[:n_rows, :, own], stats[:n_rows, :, own])
        worst = 0.0
        for row in sample(n_rows, 3):
            heads = q[row : row + 1, :width].reshape(1, -1, head_dim)
            keys, values = (x.rows(slots[row], lengths[row]) for x in (k, v))
            expected = attend_ref(heads, keys, values, np.array([len(keys) - 1]))
            worst = max(worst, compare_heads(joined[row : row + 1], expected, 2e-4))
        return worst

    return Case([launch], check)


def merge_partials(head_dim: int, n_partials: int, n_heads: int, n_rows: int) -> Case:
    """Some partials are none, whatever they hold."""
    sums = normal(n_rows, n_heads, n_partials, head_dim)
    stats = normal(n_rows, n_heads, n_partials, 2, scale=9)
    stats[..., 1] = np.abs(stats[..., 1]) + 0.5
    absent = RNG.random((n_rows, n_heads, n_partials)) < 0.3
    absent[..., n_partials // 2] = False
    sums[absent], stats[absent] = np.nan, (3e4, 0)
    out = poisoned(n_rows + 1, n_heads * head_dim + 4)
    launch = Launch(
        kernel("merge_partials", "merge_partials_cuda", head_dim),
        (n_heads, n_rows + 1),
        [out],
        (out, out.shape[1], sums, stats, n_partials, n_heads, count(n_rows)),
        np.count_nonzero(~absent) * head_dim * 4 + stats.nbytes + n_rows * n_heads * head_dim * 4,
    )

    def check() -> float:
        untouched("further rows", out[n_rows:])
        untouched("further columns", out[:, -4:])
        expected = merge_partials_ref(sums, stats).reshape(n_rows, -1)
        return compare("out", out[:n_rows, :-4], expected, rtol=1e-5, atol=1e-6)

    return Case([launch], check)


def prefill_attention(
    group: int, head_dim: int, kind: str, start: int, n_tokens: int, n_heads: int = 1
) -> Case:
    """Tokens behind `start` others; a row too many. Queries and weights have 8 (bf16) or 11 (f16) digits."""
    capacity, slot = start + n_tokens + 1, 1
    width = n_heads * group * head_dim
    k, v = (make_cache(kind, [0, capacity - 1], n_heads, capacity, head_dim) for _ in range(2))
    q, out = normal(n_tokens + 1, width + 4), poisoned(n_tokens + 1, width)
    launch = Launch(
        kernel("attend_prefill_cuda", "attend_prefill_cuda", head_dim, kind),
        (blocks(n_tokens, prefill_tokens_cuda(group)) + 1, n_heads),
        [out],
        (
            *(out, width, q, width + 4, k.words, v.words, *k.strides),
            *(np.array([slot, 9], np.int64), np.array([start, -1], np.int64), count(n_tokens)),
            *(group, 1 / math.sqrt(head_dim)),
        ),
        n_operations=2 * n_heads * group * head_dim * n_tokens * (2 * start + n_tokens + 1),
        limit=PRODUCT,
    )

    def check() -> float:
        untouched("further rows", out[n_tokens:])
        tokens = np.array(sample(n_tokens, 200 if capacity < 1000 else 7))
        heads = q[tokens, :width].reshape(len(tokens), -1, head_dim)
        expected = attend_ref(heads, *(x.rows(slot, capacity - 1) for x in (k, v)), start + tokens)
        largest, mean = (0.08, 0.006) if kind == "bf16" else (0.01, 0.0008)
        return compare_heads(out[tokens], expected, largest, mean)

    return Case([launch], check)


def plain_attention(
    group: int, head_dim: int, kind: str, lengths: tuple[int, ...], n_slots: int = 2, n_heads: int = 2
) -> Case:
    """Rows of several slots, as in decode, or of one slot, as in a prompt."""
    n_rows, capacity = len(lengths), max(lengths) + 1
    width = n_heads * group * head_dim
    k, v = (make_cache(kind, [max(lengths)] * n_slots, n_heads, capacity, head_dim) for _ in range(2))
    q, out = normal(n_rows + 1, width + 4), poisoned(n_rows + 1, width + 2)
    slots = np.array([*(row % n_slots for row in range(n_rows)), 99], np.int64)
    positions = np.array([length - 1 for length in lengths] + [10**6], np.int64)
    launch = Launch(
        kernel("attend_plain_cuda", "attend_plain_cuda", head_dim, kind),
        (n_heads * group, n_rows + 1),
        [out],
        (
            *(out, width + 2, q, width + 4, k.words, v.words, *k.strides, slots, positions, count(n_rows)),
            *(group, 1 / math.sqrt(head_dim)),
        ),
        sum(lengths) * n_heads * head_dim * 2 * (4 if kind == "f32" else 2),
        sum(lengths) * n_heads * group * head_dim * 4,
    )

    def check() -> float:
        untouched("further rows", out[n_rows:])
        untouched("further columns", out[:, width:])
        worst = 0.0
        for row in sample(n_rows, 3):
            heads = q[row : row + 1, :width].reshape(1, -1, head_dim)
            held = (x.rows(slots[row], lengths[row]) for x in (k, v))
            expected = attend_ref(heads, *held, positions[row : row + 1])
            worst = max(worst, compare_heads(out[row, :width], expected, 1e-5 * max(1, lengths[row]) ** 0.25))
        return worst

    return Case([launch], check)


def small() -> list[Sized]:
    return [
        sized("decode attention", decode_attention, 4, 64, "f16", (1, 70), 2),
        sized("ring attention", decode_attention, 4, 64, "bf16", (9, 200), 1, 2, (4, 64)),
        sized("merge partials", merge_partials, 128, 5, 2, 1),
        sized("prefill attention", prefill_attention, 2, 64, "bf16", 3, 5),
        sized("plain attention", plain_attention, 4, 80, "f16", (5, 33)),
    ]


def real() -> list[Sized]:
    made = []
    for head_dim, kind in ATTENTION:
        what = f"decode attention {head_dim} {kind}, 4 x 32768"
        made.append(sized(what, decode_attention, 4, head_dim, kind, (32768,) * 4, 16, 8))
        what = f"ring attention {head_dim} {kind}, 32 x 32768"
        made.append(sized(what, decode_attention, 4, head_dim, kind, (32768,) * 32, 1, 8, (16, 128)))
        n_tokens = 32768 if (head_dim, kind) == (128, "bf16") else 8192
        what = f"prefill attention {head_dim} {kind}, {n_tokens}"
        made.append(sized(what, prefill_attention, 4, head_dim, kind, 0, n_tokens, 4))
    for head_dim, kind in PLAIN_ATTENTION:
        what = f"plain attention {head_dim} {kind}, 8 x 4096"
        made.append(sized(what, plain_attention, 4, head_dim, kind, (4096,) * 8, 8, 8))
    return made + [
        sized(f"merge partials {head_dim}", merge_partials, head_dim, 18, 32, 64)
        for head_dim in (64, 128, 256)
    ]
