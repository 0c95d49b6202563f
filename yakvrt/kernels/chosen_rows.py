"""What methods that read some rows of a history compute, in numpy.

H stands for KV heads, G for the query heads of each, n for rows, D for the size of a head.
"""

from __future__ import annotations

import numpy as np

BLOCK_PRODUCTS = 1 << 18  # a matrix product of this size still runs on the calling thread


def logits(q: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Dot products of queries with stored rows, which are widened block by block.

    Shapes: q float32 [H, G, D], keys [H, n, D] -> float32 [H, G, n].
    """
    n_heads, n, dim = keys.shape
    group = q.shape[1]
    out = np.empty((n_heads, group, n), np.float32)
    block = max(64, BLOCK_PRODUCTS // (dim * group))
    for head in range(n_heads):
        for at in range(0, n, block):
            part = keys[head, at : at + block]
            np.matmul(q[head], part.astype(np.float32, copy=False).T, out=out[head, :, at : at + block])
    return out


def softmax(scaled: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    weights: np.ndarray = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def attend_rows(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, readable: np.ndarray | None = None
) -> np.ndarray:
    """Exact softmax attention over gathered rows, those only that are readable.

    Shapes: q [H, G, D], k and v float32 [H, n, D], readable bool [H, n] -> [H, G, D].
    """
    dim = q.shape[-1]
    scaled = logits(q, k)
    scaled *= np.float32(dim**-0.5)
    if readable is not None:
        scaled = np.where(readable[:, None], scaled, np.float32(-np.inf))
    weights = softmax(scaled)
    out = np.zeros(q.shape, np.float32)
    block = max(64, BLOCK_PRODUCTS // (dim * q.shape[1]))
    for head in range(len(q)):
        for at in range(0, k.shape[1], block):
            out[head] += weights[head, :, at : at + block] @ v[head, at : at + block]
    return out


def group_weights(scaled: np.ndarray, rule: str) -> np.ndarray:
    """What a group of query heads ranks tokens by: the sum or the largest of its heads' probabilities, or the
    mean of their logits. The probabilities are over all tokens given.

    Shapes: scaled logits [H, G, n] -> [H, n].
    """
    if rule == "mean":
        mean: np.ndarray = scaled.mean(axis=1)
        return mean
    weights = softmax(scaled)
    combined: np.ndarray = weights.sum(axis=1) if rule == "sum" else weights.max(axis=1)
    return combined


def top(weights: np.ndarray, k: int) -> np.ndarray:
    """Ascending ids of the k largest of each row, the lowest ids of equal ones; NaN counts as smallest.

    Shapes: weights [H, n], k <= n -> int64 [H, k].
    """
    n_heads, n = weights.shape
    if k >= n:
        return np.broadcast_to(np.arange(n), (n_heads, n))
    weights = np.fmax(weights, np.float32(-np.inf))
    least = np.partition(weights, n - k, axis=1)[:, n - k, None]
    chosen, equal = weights > least, weights == least
    missing = k - np.count_nonzero(chosen, axis=1)
    for head in range(n_heads):
        chosen[head, np.flatnonzero(equal[head])[: missing[head]]] = True
    return np.nonzero(chosen)[1].reshape(n_heads, k)


def page_scores(q: np.ndarray, digests: np.ndarray) -> np.ndarray:
    """The largest dot product of a query with a point of each page's box (page_digests.py).

    Shapes: q [H, G, D], digests [H, n, 2 * D] -> [H, G, n].
    """
    return logits(np.concatenate([np.maximum(q, 0), np.minimum(q, 0)], axis=-1), digests)


def page_rows(pages: np.ndarray, page: int) -> np.ndarray:
    """The positions of pages' tokens. Shapes: [..., n] -> [..., n * page]."""
    rows = pages[..., None] * page + np.arange(page)
    return rows.reshape(*pages.shape[:-1], pages.shape[-1] * page)


def replace_missing(
    held: np.ndarray, wanted: np.ndarray, n_ids: int, keep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes `held`, the ids that rest in each head's places (-1: none), contain all wanted ids: those held
    already stay where they are, the others replace ids that are not wanted, those of least `keep` first.

    Shapes: held [H, places] (changed), wanted [H, k], k <= places, ids below n_ids, keep [H, places].
    Returns: head, place and id of every row to fetch [m].
    """
    n_heads, n_places = held.shape
    rows = np.arange(n_heads)[:, None]
    place_of = np.full((n_heads, n_ids + 1), -1, np.int32)  # the last column serves the empty places
    place_of[rows, held] = np.arange(n_places)
    place_of[:, n_ids] = -1
    places = place_of[rows, wanted]
    stays = np.zeros((n_heads, n_places + 1), bool)
    stays[rows, places] = True  # a missing id marks the last column
    order_by = np.zeros(held.shape, np.float32) if keep is None else keep.astype(np.float32)
    order_by = np.where(held < 0, np.float32(-np.inf), order_by)
    order_by = np.where(stays[:, :n_places], np.float32(np.inf), order_by)
    victims = np.argsort(order_by, axis=1, kind="stable")
    missing = places < 0
    head, column = np.nonzero(missing)
    rank = missing.cumsum(axis=1)[head, column] - 1
    place = victims[head, rank]
    ids = wanted[head, column]
    held[head, place] = ids
    return head, place, ids
