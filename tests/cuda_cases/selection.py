"""What is read of a history: ranking tokens, selecting the best, the normaliser and the tail of the rest."""

from __future__ import annotations

import numpy as np

from yakvrt.cuda.kernel_list import HEADS
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.select_topk import RULES, select_topk_ref, weights_ref
from yakvrt.kernels.select_topk_cuda import candidates_stride
from yakvrt.kernels.yakv_tail import tail_ref
from yakvrt.kernels.yakv_tail_cuda import BLOCKS

from .arrays import RNG, blocks, count, normal, poisoned, repeated, sample
from .case import Case, Launch, Sized, compare, sized, untouched


def rank(rule: str, group: int, lengths: list[int]) -> Case:
    """Segments of up to max(lengths) tokens; what fills up their last four weights is anything."""
    n, width = len(lengths), blocks(max(lengths), 4) * 4
    logits = repeated(normal(min(n, 3) * group, width, scale=5), n * group)
    logits[0, : min(3, lengths[0] - 1)] = -np.inf
    lse = (logits.max(axis=1) + RNG.random(n * group)).astype(np.float32)
    weights = poisoned(n, width + 4)
    launch = Launch(
        kernel("select_topk_cuda", "rank_cuda", rule, group),
        (blocks(width, 1024), n),
        [weights],
        (weights, width + 4, logits, width, lse, np.array(lengths)),
        sum(lengths) * (group + 1) * 4,
    )

    def check() -> float:
        atol, worst = 2e-6 if rule == "mean" else 1e-37, 0.0
        for segment in sample(n, 8):
            own, length = slice(segment * group, (segment + 1) * group), lengths[segment]
            expected = weights_ref(logits[own, :length], lse[own], rule)
            untouched("further weights", weights[segment, blocks(length, 4) * 4 :])
            # the exponent itself is rounded: it counts where a logit lies far below the normaliser
            off = compare("weights", weights[segment, :length], expected, rtol=8e-6, atol=atol)
            worst = max(worst, off)
        return worst

    return Case([launch], check)


def select_topk(segments: list[np.ndarray], budgets: list[int]) -> Case:
    """The best of every segment; rows of one length, a row too many."""
    n, longest = len(segments), max(map(len, segments))
    width, most = blocks(longest, 4) * 4, min(longest, max(budgets)) + 3
    weights = np.full((n + 1, width), np.inf, np.float32)
    for row, segment in zip(weights, segments, strict=False):
        row[: len(segment)] = segment
    lengths = np.array([*map(len, segments), 5])
    stride = candidates_stride(longest)
    ids, counts = poisoned(n + 1, most, dtype=np.int32), poisoned(n + 1, dtype=np.int64)
    candidates = poisoned(n + 1, stride, dtype=np.uint32)
    launch = Launch(
        kernel("select_topk_cuda", "select_topk_cuda"),
        n + 1,
        [ids, counts],
        (ids, most, counts, weights, width, lengths, np.array([*budgets, 2]), candidates, stride, count(n)),
        int(lengths[:n].sum()) * 4,
    )

    def check() -> float:
        untouched("further rows", ids[n:])
        untouched("further counts", counts[n:])
        compare("counts", counts[:n], np.minimum(lengths[:n], budgets))
        for segment in sample(n, 12):
            found = int(counts[segment])
            compare("ids", ids[segment, :found], select_topk_ref(segments[segment], budgets[segment]))
            untouched("further ids", ids[segment, found:])
        return 0.0

    return Case([launch], check)


def select_random(n_segments: int, n: int, budget: int) -> Case:
    """Weights as those of attention: few count."""
    distinct = [RNG.random(n).astype(np.float32) ** 8 for _ in range(min(n_segments, 16))]
    return select_topk([distinct[i % len(distinct)] for i in range(n_segments)], [budget] * n_segments)


def log_sum_exp(n_queries: int, n_parts: int) -> Case:
    """Some parts of the first query are without logits; one partial of attention is a part too."""
    stats = normal(n_queries + 1, n_parts, 2, scale=20)
    stats[:, :, 1] = RNG.random((n_queries + 1, n_parts)) + 1
    stats[0, 1:] = [-1e30, 0]
    partials = normal(n_queries + 1, 3, 2, scale=20)
    partials[:, 0, 1] = RNG.random(n_queries + 1) + 1
    lse, natural = poisoned(n_queries + 4), partials[:, :1].astype(float) * [np.log(2), 1]
    wide = np.concatenate([stats.astype(float), natural], axis=1)
    launch = Launch(
        kernel("yakv_tail_cuda", "log_sum_exp_cuda"),
        blocks(n_queries + 1, 4),
        [lse],
        (lse, stats, n_parts, partials, 3, 1, count(n_queries)),
        n_queries * (n_parts * 8 + 4),
    )

    def check() -> float:
        untouched("further queries", lse[n_queries:])
        largest = wide[:, :, 0].max(axis=1)
        total = (np.exp(wide[:, :, 0] - largest[:, None]) * wide[:, :, 1]).sum(axis=1)
        expected = (largest + np.log(total))[:n_queries]
        return compare("lse", lse[:n_queries], expected, rtol=1e-6, atol=1e-6)

    return Case([launch], check)


def tail(
    group: int, head_dim: int, lengths: list[int], counts: list[int], n_heads: int = 2, n_parts: int = 2
) -> Case:
    """Segments of rows and KV heads, the last row's beyond the batch; parts lie between other partials."""
    n_segments, n_rows, n_most = len(lengths), len(lengths) // n_heads - 1, max(lengths)
    slots = np.array([*range(n_rows, 0, -1), 0])
    logits = repeated(normal(min(n_segments, 7), group, n_most, scale=3), n_segments)
    lse = (logits.max(axis=2) + 2).astype(np.float32)
    ids = poisoned(n_segments, max(counts) + 3, dtype=np.int32)
    for row, n, k in zip(ids, lengths, counts, strict=True):
        row[:k] = np.sort(RNG.choice(n, min(k, n), replace=False)) if k else 0
    values = normal(n_rows + 1, n_heads, n_most // 64, head_dim).astype(np.float16)
    words = values.reshape(n_rows + 1, n_heads, -1).view(np.uint32)
    n_partials, shares = n_parts + 2, RNG.random((n_rows + 1, n_heads, group)).astype(np.float32)
    sums, stats = (poisoned(n_segments, group, n_partials, size) for size in (head_dim, 2))
    launch = Launch(
        kernel("yakv_tail_cuda", "yakv_tail_cuda", group, head_dim),
        (n_parts, n_segments),
        [sums, stats],
        (
            *(sums, stats, 1, n_partials, logits, n_most, lse, np.array(lengths)),
            *(ids, ids.shape[1], np.array(counts), words, words.strides[0] // 4, words.strides[1] // 4),
            *(slots, n_heads, shares, count(n_rows)),
        ),
        sum(lengths[: n_rows * n_heads]) * (4 * group + head_dim // 32),
    )

    def check() -> float:
        untouched("further sums", sums[n_rows * n_heads :])
        untouched("further stats", stats[n_rows * n_heads :])
        untouched("other partials", stats[:, :, [0, -1]])
        worst = 0.0
        for segment in sample(n_rows * n_heads, 6):
            row, head = divmod(segment, n_heads)
            n, chosen = lengths[segment], ids[segment, : counts[segment]]
            own = values[slots[row], head, : n // 64]
            share = shares[slots[row], head, :, None]
            expected = tail_ref(logits[segment, :, :n], lse[segment], chosen, own, share)
            base = lse[segment, :, None] * np.log2(np.e)
            worst = max(
                worst,
                compare("sums", sums[segment, :, 1:-1].sum(axis=1), expected[0], atol=1e-5),
                compare("mass", stats[segment, :, 1:-1, 1].sum(axis=1), expected[1], rtol=2e-5, atol=1e-7),
                compare("base", stats[segment, :, 1:-1, 0], np.repeat(base, n_parts, axis=1), rtol=1e-6),
            )
        return worst

    return Case([launch], check)


def small() -> list[Sized]:
    return [
        sized("rank", rank, "sum", 4, [1, 1030, 0, 512]),
        sized("select", select_random, 3, 700, 40),
        sized("log sum exp", log_sum_exp, 5, 40),
        sized("tail", tail, 4, 64, [320, 0, 128, 192, 64, 64], [200, 0, 128, 1, 5, 5]),
    ]


def real() -> list[Sized]:
    """128k tokens of 8 KV heads: 32 slots to select, 4 to rank."""
    made = [
        sized("select 4096 of 131072, 256 segments", select_random, 256, 131072, 4096),
        sized("log sum exp", log_sum_exp, 2048, 132),
    ]
    for head_dim, group in HEADS:
        if group != 8 or head_dim == 128:
            made += [sized(f"rank {rule} x {group}", rank, rule, group, [131072] * 32) for rule in RULES]
        lengths, counts = [131072] * 32 + [64] * 8, [4096] * 32 + [5] * 8
        made.append(
            sized(f"tail {head_dim} x {group}", tail, group, head_dim, lengths, counts, 8, 2048 // BLOCKS)
        )
    return made
