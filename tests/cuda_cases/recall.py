"""YAKV's indexed rows, made exact ones again."""

from __future__ import annotations

import numpy as np

from yakvrt.cuda.kernel_choice import recall_kernel
from yakvrt.cuda.kernel_list import FORMATS, HEAD_DIMS
from yakvrt.higgs_grids import load_grid
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS, ROW_FORMATS, SELECTORS, row_bytes
from yakvrt.kernels.higgs_residual import estimate_ref
from yakvrt.kernels.yakv_recall_cuda import recall_ref

from .arrays import RNG, blocks, from_bf16, normal, poisoned, sample, selector_grids, selector_words
from .case import LINK, Case, Launch, Sized, compare, sized, untouched


def recall(
    head_dim: int,
    kind: str,
    selector_name: str,
    formats: tuple[str, str],
    centred: bool,
    first: int,
    n: int,
    ring_len: int,
    n_heads: int = 2,
) -> Case:
    """n rows from `first` on, behind some sinks; the codes of others are NaN."""
    n_sinks, last = 5, first + n
    n_blocks, n_places = blocks(last, BLOCK_TOKENS) + 1, n_sinks + min(ring_len, last) + 3
    selector, row_formats = SELECTORS[selector_name], [ROW_FORMATS[name] for name in formats]
    codes = RNG.integers(0, 256, (n_heads, n_blocks * BLOCK_TOKENS, row_bytes(head_dim, *formats)), np.uint8)
    scales = np.full((*codes.shape[:2], 2), np.nan, np.float16)
    scales[:, first:last] = RNG.uniform(0.02, 3, (n_heads, n, 2))
    selectors = RNG.integers(0, 256, (n_heads, n_blocks, selector.block_bytes(head_dim)), np.uint8)
    at = selector.scales(head_dim)
    own = RNG.uniform(0.02, 3, (n_heads, n_blocks, BLOCK_TOKENS)).astype(np.float16)
    selectors[:, :, at : at + 2 * BLOCK_TOKENS] = own.view(np.uint8)
    if selector.mean_grid:
        own = RNG.uniform(0.02, 3, (n_heads, n_blocks, 8)).astype(np.float16)
        selectors[:, :, selector.mean_scales(head_dim) :][:, :, :16] = own.view(np.uint8)
    means = normal(n_heads, head_dim)
    grids = [load_grid(row_format.grid or "") for row_format in row_formats]
    books = [grid.astype(np.float16).reshape(-1).view(np.uint32) for grid in grids]
    k, v = (poisoned(n_heads, n_places, head_dim // 2, dtype=np.uint32) for _ in range(2))
    launch = Launch(
        recall_kernel(head_dim, kind, selector_name, *formats, centred),
        (blocks(n, BLOCK_TOKENS), n_heads),
        [k, v],
        (
            *(k, v, n_places * head_dim // 2, n_sinks, ring_len),
            *(codes.view(np.uint32), codes.strides[0] // 4, scales.view(np.uint32), scales.strides[0] // 4),
            *(*books, selectors.view(np.uint32), selectors.strides[0] // 4),
            *(*selector_words(selector), means if centred else None, first, last),
        ),
        n_heads * n * (codes.shape[2] + 4),
        limit=LINK,
    )

    def check() -> float:
        worst, others = 0.0, np.ones(n_places, bool)
        some = np.array(sample(n, 4000))
        for head in range(n_heads):
            estimates = estimate_ref(
                selector_name, selectors[head], n_blocks * BLOCK_TOKENS, head_dim, *selector_grids(selector)
            )
            rows = first + some
            expected = recall_ref(
                formats,
                codes[head, rows],
                scales[head, rows],
                (grids[0], grids[1]),
                estimates[rows],
                means[head] if centred else None,
            )
            places = n_sinks + rows % ring_len
            for what, found, truth in zip(("keys", "values"), (k, v), expected, strict=True):
                halves = found[head, places].view(np.uint16)
                numbers = from_bf16(halves) if kind == "bf16" else halves.view(np.float16)
                rounding = 2**-8 if kind == "bf16" else 2**-11
                worst = max(worst, compare(what, numbers, truth, rtol=1.01 * rounding, atol=2e-5))
        others[n_sinks + np.arange(first, last) % ring_len] = False
        untouched("other keys", k[:, others])
        untouched("other values", v[:, others])
        return worst

    return Case([launch], check, [codes, scales])


def small() -> list[Sized]:
    return [
        sized(f"recall {selector}", recall, 64, "f16", selector, ("r3", "q4"), True, 64, 70, 1 << 20, 1)
        for selector in SELECTORS
    ]


def real() -> list[Sized]:
    """A context of 32k tokens of 8 KV heads."""
    return [
        sized(
            f"recall {size} {kind} {selector} {formats[0]}",
            *(recall, size, kind, selector, formats, True, 0, 32768, 1 << 20, 8),
        )
        for size in HEAD_DIMS
        for kind in ("f16", "bf16")
        for selector in SELECTORS
        for formats in FORMATS
    ]
