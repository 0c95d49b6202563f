"""Pages of tokens and the boxes that stand for their keys."""

from __future__ import annotations

import numpy as np

from .rows import logits


def page_digests(k: np.ndarray, page: int, *, centred: bool) -> np.ndarray:
    """[high | low] corners of every page's keys: their extremes, or around the middle of these the mean
    distance from it.

    Shapes: k float32 [H, n * page, D] -> [H, n, 2 * D].
    """
    pages = k.reshape(len(k), -1, page, k.shape[-1])
    high, low = pages.max(axis=2), pages.min(axis=2)
    if centred:
        centre = (high + low) / 2
        spread = np.abs(pages - centre[:, :, None]).mean(axis=2)
        high, low = centre + spread, centre - spread
    return np.concatenate([high, low], axis=-1)


def page_scores(q: np.ndarray, digests: np.ndarray) -> np.ndarray:
    """The largest dot product of a query with a point of each box.

    Shapes: q [H, G, D], digests [H, n, 2 * D] -> [H, G, n].
    """
    return logits(np.concatenate([np.maximum(q, 0), np.minimum(q, 0)], axis=-1), digests)


def page_rows(pages: np.ndarray, page: int) -> np.ndarray:
    """The positions of pages' tokens. Shapes: [..., n] -> [..., n * page]."""
    rows = pages[..., None] * page + np.arange(page)
    return rows.reshape(*pages.shape[:-1], pages.shape[-1] * page)
