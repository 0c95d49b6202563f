"""Scores of queries against HIGGS selector codes, on the tensor cores."""

from __future__ import annotations

import numpy as np

from yakvrt.cuda.kernel_list import HEADS
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS, SELECTORS
from yakvrt.kernels.higgs_query_cuda import query_words
from yakvrt.kernels.higgs_score import score_ref
from yakvrt.kernels.higgs_selector import encode_selector_ref
from yakvrt.kernels.rotate import rotation, rotation_lanes

from .arrays import blocks, count, normal, poisoned, repeated, sample, selector_grids, selector_words
from .case import Case, Launch, Mismatch, Sized, compare, sized, untouched

UNUSED_BYTES = 48  # of a selector block with mean rows
DISTINCT = 31  # selector blocks of a long history, which repeats them


def clear_queries(shape: tuple[int, int, int], signs: bool) -> np.ndarray:
    """Random queries no coordinate of which lies just between two integers once rotated and scaled."""
    q = normal(*shape, scale=3)
    matrix = rotation(shape[2], signs).T.astype(float)
    while True:
        y = q.astype(float) @ matrix
        near = np.abs(y / np.abs(y).max(axis=2, keepdims=True) * 127 % 1 - 0.5).min(axis=2) < 1e-4
        if not near.any():
            return q
        q[near] = normal(int(near.sum()), shape[2], scale=3)


def score(
    kind: str,
    head_dim: int,
    group: int,
    centred: bool,
    signs: bool,
    lengths: list[int],
    n_shares: int = 2,
    n_heads: int = 2,
) -> Case:
    """Queries and their logits; `lengths` of every KV head of rows, the last row's beyond the batch."""
    grids, n_rows, factor = selector_grids(SELECTORS[kind]), len(lengths) // n_heads - 1, 0.37
    n_slots, n_blocks, n_query_heads = n_rows + 1, blocks(max(lengths), BLOCK_TOKENS) + 1, n_heads * group
    slots = np.array([*range(n_slots - 1, 0, -1), 0, 1])
    keys = normal(n_slots, n_heads, min(n_blocks, DISTINCT) * BLOCK_TOKENS, head_dim)
    codes = [[encode_selector_ref(kind, head, *grids, signs=signs) for head in slot] for slot in keys]
    distinct = np.ascontiguousarray(codes)
    if SELECTORS[kind].mean_grid:
        distinct[..., -UNUSED_BYTES:] = 0xCD
    held = repeated(distinct, n_blocks, 2)
    means, q = normal(n_slots, n_heads, head_dim), clear_queries((n_rows + 1, n_query_heads, head_dim), signs)
    q[0, 0] = 0
    words = selector_words(SELECTORS[kind])
    queries = poisoned(n_rows + 1, n_query_heads, query_words(kind, head_dim), dtype=np.uint32)
    records = poisoned(n_rows + 1, n_query_heads, 4)
    query = Launch(
        kernel("higgs_query_cuda", "higgs_query_cuda", kind, head_dim, centred, signs),
        blocks((n_rows + 1) * n_query_heads, 128 // rotation_lanes(head_dim)),
        [queries, records],
        (
            *(queries, records, q, n_query_heads * head_dim, means if centred else None, n_heads * head_dim),
            *(slots, n_query_heads, group, factor, words[1], count(n_rows)),
        ),
        n_rows * n_query_heads * (head_dim * 4 + queries.shape[2] * 4 + 16),
    )
    n_segments, n_own = (n_rows + 1) * n_heads, n_rows * n_heads
    logits = poisoned(n_segments, group, n_blocks * BLOCK_TOKENS)
    stats = poisoned(n_segments, group, n_shares + 2, 2)
    strides = [stride // 4 for stride in held.strides[:2]]
    per_token = SELECTORS[kind].block_bytes(head_dim) // BLOCK_TOKENS + 4 * group
    launch = Launch(
        kernel("higgs_score_cuda", "higgs_score_cuda", kind, head_dim, group),
        (n_shares, n_segments),
        [logits, stats],
        (
            *(logits, logits.shape[2], stats, n_shares + 2, 1, queries, records),
            *(held.view(np.uint32), *strides, slots, n_heads, np.array(lengths), *words, count(n_rows)),
        ),
        sum(lengths[:n_own]) * per_token,
    )

    def check() -> float:
        for further in (queries[n_rows:], records[n_rows:], logits[n_own:], stats[n_own:]):
            untouched("further rows", further)
        untouched("other parts", stats[:, :, [0, -1]])
        worst = 0.0
        for segment in sample(n_own, 8 if n_blocks <= DISTINCT else 3):
            row, head = divmod(segment, n_heads)
            own, n = slice(head * group, (head + 1) * group), lengths[segment]
            worst = max(worst, segment_error(segment, q[row, own], slots[row], head, n))
        return worst

    def segment_error(segment: int, own: np.ndarray, slot: int, head: int, n: int) -> float:
        n_all = blocks(n, BLOCK_TOKENS) * BLOCK_TOKENS
        found, mean = logits[segment, :, :n_all], means[slot, head] if centred else None
        n_distinct = min(n, distinct.shape[2] * BLOCK_TOKENS)
        truth = score_ref(
            kind, own, distinct[slot, head], n_distinct, factor, *grids, mean, signs=signs, rounding="int8"
        )
        expected = truth[:, np.arange(n) % max(n_distinct, 1)] if n else truth[:, :0]
        untouched("further logits", logits[segment, :, n_all:])
        if not (found[:, n:] == -np.inf).all():
            raise Mismatch("logits behind the last token are not -inf")
        for own_stats, row_logits in zip(stats[segment, :, 1:-1], found.astype(float), strict=True):
            largest = max(row_logits.max(initial=-1e30), -1e30)
            compare("largest logit", own_stats[:, :1].max(axis=0), np.array([np.float32(largest)]))
            total = (np.exp(own_stats[:, 0] - largest) * own_stats[:, 1]).sum(keepdims=True)
            compare("total", total, np.exp(row_logits - largest).sum(keepdims=True), rtol=1e-5)
        return compare("logits", found[:, :n], expected, atol=2e-5 * head_dim**0.5)

    return Case([query, launch], check)


def small() -> list[Sized]:
    return [
        sized(f"score {kind}", score, kind, 64, 4, True, False, [70, 64, 1, 0, 99, 99]) for kind in SELECTORS
    ]


def real() -> list[Sized]:
    """Contexts of 128k tokens of 8 KV heads, two at a time."""
    lengths = [131072] * 16 + [99] * 8
    return [
        sized(f"score {kind} {size} x {group}", score, kind, size, group, True, False, lengths, 33, 8)
        for kind in SELECTORS
        for size, group in HEADS
    ]
