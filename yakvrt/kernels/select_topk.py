"""The ids of the k largest estimated probabilities of one KV head, shared by its group of queries.

Rules: "sum" ranks by the sum over the group of exp(logit - LSE), "max" by the largest of them, "mean" by the
mean logit. LSE is each query's normaliser, the log of its sum of exponentials.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RULES = ("sum", "max", "mean")
SLACK = 1.5  # candidates kept per wanted id before the exact search
CHUNK_TOKENS = 128  # keys are padded to as many; every 8 of them share a maximum
FEW = 10  # tokens per wanted id from which on these maxima bound the search


def weights_ref(logits: np.ndarray, lse: np.ndarray, rule: str) -> np.ndarray:
    """What tokens are ranked by, float64. Shapes: logits [G, n], lse [G] -> [n]."""
    wide = logits.astype(np.float64)
    if rule == "mean":
        return wide.mean(axis=0)
    with np.errstate(under="ignore"):
        p = np.exp(wide - lse.astype(np.float64)[:, None])
    return p.sum(axis=0) if rule == "sum" else p.max(axis=0)


def select_topk_ref(weights: np.ndarray, k: int) -> np.ndarray:
    """Ascending ids of the min(k, n) largest, the lowest ids of equal ones. Shapes: weights [n]."""
    return np.sort(np.argsort(-weights, kind="stable")[:k])


def keys_bytes(n: int) -> int:
    """Bytes of the keys of n tokens, padded to whole chunks."""
    return -(-n // CHUNK_TOKENS) * CHUNK_TOKENS * 4


def select_scratch_bytes(n: int) -> int:
    """Scratch of make_select_largest for up to n keys, which does not hold the keys themselves."""
    return 3 * (keys_bytes(n) + 64)


def make_pad() -> Any:
    """An inline pad(keys, n): fills up keys of n tokens, a multiple of 16, to whole chunks."""
    from ..cpu import largest
    from ..cpu import vector_ops as v

    chunk = CHUNK_TOKENS

    @v.inline
    def pad(keys: int, n: int) -> None:
        for first in range(n, (n + chunk - 1) // chunk * chunk, 16):
            largest.store_keys(keys + first * 4, v.zero(), 0)

    return pad


def make_weights(rule: str, group: int) -> Any:
    """An inline weights(keys, logits, logits_stride, lse, n): sort keys (int32) of n tokens, then padding.

    Shapes: logits float32, G rows logits_stride bytes apart, readable up to a multiple of 16; lse float32
    [G]. `keys`: keys_bytes(n) bytes.
    """
    from ..cpu import largest
    from ..cpu import vector_ops as v

    if rule not in RULES:
        raise ValueError(f"no ranking rule {rule!r}: choose one of {', '.join(RULES)}")
    as_sum, as_mean, pad = rule == "sum", rule == "mean", make_pad()

    @v.inline
    def weights(keys: int, logits: int, logits_stride: int, lse: int, n: int) -> None:
        for first in range(0, n, 16):
            total = v.zero()
            for g in range(group):
                piece = v.load_f32(logits + g * logits_stride + first * 4)
                if as_mean:
                    total = v.add(total, piece)
                else:
                    p = largest.weight(piece, v.get_f32(lse + g * 4))
                    total = v.add(total, p) if as_sum else v.vmax(p, total)
            if as_mean:
                total = v.mul(total, v.splat(np.float32(1 / group)))
            largest.store_keys(keys + first * 4, total, n - first)
        pad(keys, (n + 15) // 16 * 16)

    return weights


def make_select_largest() -> Any:
    """An inline select_largest(keys, n, k, ids, scratch) -> min(k, n): ascending ids (int32) of the largest.

    Equal ones: the lowest ids. `keys`: as make_weights leaves them. `scratch`: select_scratch_bytes(n) bytes.
    """
    from ..cpu import largest
    from ..cpu import vector_ops as v

    chunk, few, lowest = CHUNK_TOKENS, FEW, largest.LOWEST

    @v.inline
    def narrow(keys: int, n_vectors: int, low: int, high: int, count: int, k: int, enough: int) -> Any:
        """The largest bound with at least k keys, or the first found with at most `enough`; and the count.

        At least k keys (`count`) reach low, fewer reach high.
        """
        while count > enough and high - low > 1:
            middle = low + (high - low) // 2
            found = largest.count_at_least(keys, n_vectors, middle)
            if found >= k:
                low, count = middle, found
            else:
                high = middle
        return low, high, count

    @v.inline
    def bound(keys: int, n_vectors: int, k: int, maxima: int) -> int:
        """A key that at least k keys reach, and few more: so do k of the maxima of 8 keys each."""
        n_chunks = n_vectors * 16 // chunk
        largest.lane_maxima(keys, n_chunks, maxima)
        n_maxima = (n_chunks + 3) // 4 * 4
        for i in range(n_chunks * 16, n_maxima * 16):
            v.put_i32(maxima + i * 4, lowest)
        low, high = largest.smallest_key(maxima, n_maxima), largest.largest_key(maxima, n_maxima) + 1
        count = largest.count_at_least(maxima, n_maxima, low)
        return narrow(maxima, n_maxima, low, high, count, k, k + k // 8)[0]

    @v.inline
    def select_largest(keys: int, n: int, k: int, ids: int, scratch: int) -> int:
        k = min(k, n)
        if k <= 0:
            return 0
        if k == n:
            for i in range(n):
                v.put_i32(ids + i * 4, i)
            return n
        n_vectors = (n + chunk - 1) // chunk * (chunk // 16)
        kept_keys = scratch
        kept_ids = kept_keys + n_vectors * 64 + 64
        chosen = kept_ids + n_vectors * 64 + 64
        if k * few <= n:
            low = bound(keys, n_vectors, k, chosen)
        else:
            low = largest.smallest_key(keys, n_vectors)
            high = largest.largest_key(keys, n_vectors) + 1
            low = narrow(keys, n_vectors, low, high, n, k, int(k * SLACK))[0]
        count = largest.keep_at_least(keys, n_vectors, low, kept_keys, kept_ids)
        n_kept = (count + 63) // 64 * 4
        for i in range(count, n_kept * 16):
            v.put_i32(kept_keys + i * 4, lowest)
        high = largest.largest_key(kept_keys, n_kept) + 1
        low, high, count = narrow(kept_keys, n_kept, low, high, count, k, k)
        last_equal = n
        if count > k:  # more are equal to the bound than fit
            n_equal = k - largest.count_at_least(kept_keys, n_kept, low + 1)
            i = 0
            while n_equal > 0:
                if v.get_i32(kept_keys + i * 4) == low:
                    n_equal -= 1
                    last_equal = v.get_i32(kept_ids + i * 4)
                i += 1
        largest.keep_ids(kept_keys, kept_ids, n_kept, low, last_equal, chosen)
        for i in range(k):
            v.put_i32(ids + i * 4, v.get_i32(chosen + i * 4))
        return k

    return select_largest


def select_topk_cpu(rule: str, group: int) -> Any:
    """Selects for several heads. Threads share the heads.

    Args: ids, ids_stride, counts, logits, logits_stride (between queries), lse, lengths, budgets, n_heads*,
    scratch, scratch_stride.
    Shapes: ids int32 [heads][...], counts, lengths and budgets (k) int64 [heads], logits float32
    [heads * G][...], lse float32 [heads][G]. Scratch of a thread: keys_bytes(n) + select_scratch_bytes(n).
    """
    from ..cpu import vector_ops as v

    weights, select_largest, chunk = make_weights(rule, group), make_select_largest(), CHUNK_TOKENS

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        ids, ids_stride, counts = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        logits, logits_stride, lse = v.get_i64(args + 24), v.get_i64(args + 32), v.get_i64(args + 40)
        lengths, budgets = v.get_i64(args + 48), v.get_i64(args + 56)
        keys = v.get_i64(args + 72) + thread * v.get_i64(args + 80)
        first, last = v.share(v.get_i64(v.get_i64(args + 64)), thread, n_threads, 0)
        for head in range(first, last):
            n, k = v.get_i64(lengths + head * 8), v.get_i64(budgets + head * 8)
            weights(keys, logits + head * group * logits_stride, logits_stride, lse + head * group * 4, n)
            scratch = keys + (n + chunk - 1) // chunk * chunk * 4
            v.put_i64(counts + head * 8, select_largest(keys, n, k, ids + head * ids_stride, scratch))

    return kernel
