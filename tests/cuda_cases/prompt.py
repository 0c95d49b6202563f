"""A prompt in YAKV's pools: its rows as the encoders read them, its last rows, the part of the tail."""

from __future__ import annotations

import numpy as np

from yakvrt.cuda.kernel_list import HEAD_DIMS
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS
from yakvrt.kernels.keep_rows import keep_rows_ref
from yakvrt.kernels.yakv_fit import STEPS, TAIL, best_parts, tail_errors_ref
from yakvrt.kernels.yakv_prompt_cuda import mean_values_ref

from .arrays import RNG, blocks, count, normal, poisoned, stored
from .case import Case, Launch, Sized, compare, sized, untouched


def widen(head_dim: int, kind: str, first: int, n_blocks: int, n_heads: int = 2) -> Case:
    """Some blocks of a prompt, and a block too many; the mean key of all of it."""
    n_sinks, slot, room = 5, 1, first // BLOCK_TOKENS + n_blocks + 1
    last = first + n_blocks * BLOCK_TOKENS
    n_tokens = n_sinks + last + 70
    (k, k_words), (v, v_words) = (stored(normal(n_heads, n_tokens, head_dim), kind) for _ in range(2))
    k_rows, v_rows = (poisoned(n_heads, (n_blocks + 1) * BLOCK_TOKENS, head_dim) for _ in range(2))
    values = poisoned(3, n_heads, room, head_dim // 2, dtype=np.uint32)
    means = poisoned(3, n_heads, head_dim)
    spans = np.array([slot, first, last, n_tokens])
    cache_head = n_tokens * head_dim // 2
    launches = [
        Launch(
            kernel("yakv_prompt_cuda", "yakv_widen_cuda", head_dim, kind),
            (n_blocks + 1, n_heads),
            [k_rows, v_rows, values],
            (
                *(k_rows, v_rows, k_rows.shape[1] * head_dim),
                *(values, values.strides[0] // 4, values.strides[1] // 4),
                *(k_words, v_words, cache_head, spans, n_sinks),
            ),
            n_heads * n_blocks * BLOCK_TOKENS * head_dim * 12,
        ),
        Launch(
            kernel("yakv_prompt_cuda", "yakv_mean_key_cuda", head_dim, kind),
            n_heads,
            [means],
            (means, n_heads * head_dim, k_words, cache_head, spans, n_sinks),
            n_heads * n_tokens * head_dim * 2,
        ),
    ]

    def check() -> float:
        own = slice(n_sinks + first, n_sinks + last)
        for rows, truth in ((k_rows, k), (v_rows, v)):
            compare("rows", rows[:, : last - first], truth[:, own])
            untouched("rows of a block too many", rows[:, last - first :])
        at = slice(first // BLOCK_TOKENS, last // BLOCK_TOKENS)
        halves = values[slot, :, at].view(np.float16)
        worst = compare("mean values", halves, mean_values_ref(v[:, own]), rtol=1e-3, atol=1e-4)
        untouched("other blocks", values[slot, :, : at.start])
        untouched("further blocks", values[slot, :, at.stop :])
        untouched("other slots", values[[0, 2]])
        worst = max(worst, compare("mean keys", means[slot], k[:, n_sinks:].mean(axis=1), 1e-4, 1e-5))
        untouched("mean keys of others", means[[0, 2]])
        return worst

    return Case(launches, check)


def keep_rows(n_kept: int, width: int, chunks: list[int]) -> Case:
    """The last rows of a prompt, chunk after chunk."""
    kept, stride = poisoned(n_kept, width), width + 16
    truth, launches, start = kept.copy(), [], 9
    for n in chunks:
        x = normal(n + 2, stride)
        positions = np.arange(start, start + n + 2)
        keep_rows_ref(truth, x[:n, :width], positions[:n])
        grid = (blocks(width, 256), n + 2)
        given = (kept, n_kept, width, x, stride, positions, count(n))
        launches.append(
            Launch(kernel("keep_rows", "keep_rows_cuda"), grid, [kept], given, 8 * width * n_kept)
        )
        start += n

    def check() -> float:
        assert not np.isnan(truth).any()
        return compare("kept rows", kept, truth)

    return Case(launches, check)


def tail_errors(head_dim: int, n_heads: int, n_rows: int, n_partials: int) -> Case:
    """One of the partials is the tail; one weighs nothing and holds anything."""
    sums = normal(n_rows, n_heads, n_partials, head_dim)
    stats = np.stack(
        [normal(n_rows, n_heads, n_partials, scale=2), RNG.random((n_rows, n_heads, n_partials)) + 0.5],
        axis=-1,
    ).astype(np.float32)
    stats[:, :, 0, 1], sums[:, :, 0] = 0, np.nan
    exact = normal(n_rows, n_heads * head_dim + 32)
    errors = np.ones((n_heads, STEPS + 1), np.float32)
    first_tail = n_partials - 1
    launch = Launch(
        kernel("yakv_fit", "tail_errors_cuda", head_dim),
        n_heads,
        [errors],
        (errors, exact, exact.shape[1], sums, stats, first_tail, n_partials, n_heads, count(n_rows)),
        sums.nbytes,
    )

    def check() -> float:
        order = [1, first_tail, *range(2, first_tail)]  # the truth has the tail in its own place
        assert order[TAIL] == first_tail
        own = sums[:, :, order].swapaxes(1, 2)
        maxima, weights = stats[:, :, order, 0] * np.log(2), stats[:, :, order, 1]
        given = exact[:, : n_heads * head_dim].reshape(n_rows, n_heads, head_dim)
        truth = tail_errors_ref(given, own, np.stack([maxima, weights], axis=2))
        return compare("errors", errors, 1 + truth, rtol=1e-4)

    return Case([launch], check)


def parts(n_heads: int) -> Case:
    """Of equal errors the first counts."""
    errors, found = RNG.integers(0, 20, (n_heads, STEPS + 1)).astype(np.float32), poisoned(n_heads + 1)
    launch = Launch(
        kernel("yakv_fit", "best_parts_cuda"), 1, [found], (found, errors, n_heads), errors.nbytes
    )

    def check() -> float:
        untouched("further heads", found[n_heads:])
        return compare("parts", found[:n_heads], best_parts(errors))

    return Case([launch], check)


def counters(cached: bool, n_rows: int, n_heads: int) -> Case:
    """Two steps."""
    n, found = n_rows * n_heads, np.array([5, 6, 7])
    counts = RNG.integers(1, 4000, n + 1)
    missing = RNG.integers(0, counts)
    given = (found, counts, missing if cached else None, int(cached), n_heads, count(n_rows))
    launch = Launch(kernel("yakv_fetch_cuda", "yakv_count_cuda"), 1, [found], given)

    def check() -> float:
        hits = (counts - missing)[:n].sum() if cached else 0
        truth = np.array([5 + 2 * counts[:n].sum(), 6 + 2 * hits, 7 + 2 * n_rows])
        return compare("counters", found, truth)

    return Case([launch, launch], check)


def small() -> list[Sized]:
    return [
        sized("widen a prompt", widen, 64, "f16", 128, 2),
        sized("keep the last rows", keep_rows, 24, 80, [30, 7, 2]),
        sized("errors of the tail", tail_errors, 64, 3, 2, 5),
        sized("parts of the tail", parts, 3),
        sized("count", counters, True, 3, 100),
        sized("count without a cache", counters, False, 2, 8),
    ]


def real() -> list[Sized]:
    return [
        *(
            sized(f"widen a prompt {size} {kind}", widen, size, kind, 512, 16, 8)
            for size in HEAD_DIMS
            for kind in ("f16", "bf16")
        ),
        sized("keep the last rows", keep_rows, 24, 4096, [2048]),
        sized("parts of the tail", parts, 32),
        *(sized(f"errors of the tail {size}", tail_errors, size, 32, 1, 14) for size in HEAD_DIMS),
        sized("count", counters, True, 32, 8),
    ]
