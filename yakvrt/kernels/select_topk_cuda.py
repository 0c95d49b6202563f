"""CUDA kernels that rank tokens and select the largest weights of many segments (KV heads) in one launch."""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel, Work
from .select_topk import RULES

SPAN = 128  # weights that a warp reads at once
WARPS = 16
LOG2_E = 1.4426950408889634


def candidates_stride(n: int) -> int:
    """Words of scratch of a segment of up to n weights in select_topk_cuda."""
    return 2 * -(-n // (WARPS * SPAN)) * WARPS * SPAN


def rank_cuda(g: Any, rule: str, group: int) -> CudaKernel:
    """What tokens are ranked by, from logits and normalisers; see weights_ref.

    Grid: x, blocks of 1024 tokens, for the longest segment; y, segments.
    Shapes: weights float32 [segments][weights_stride], logits float32 [segments * G][logits_stride], lse
    float32 [segments][G], lengths int64 [segments]. Strides in numbers, multiples of 4. What fills up a
    segment's last 4 weights is undefined.
    Raises: ValueError for another rule.
    """
    if rule not in RULES:
        raise ValueError(f"no ranking rule {rule!r}: choose one of {', '.join(RULES)}")
    threads = 256
    log2_e, share = LOG2_E, 1 / group
    as_mean, as_sum = rule == "mean", rule == "sum"

    @g.inline
    def joined(total, logit, offset):  # type: ignore[no-untyped-def]
        if as_mean:
            return total + logit
        p = g.exp2(g.fma(logit, g.float32(log2_e), offset))
        if as_sum:
            return total + p
        return max(total, p)

    def kernel(weights, weights_stride, logits, logits_stride, lse, lengths):  # type: ignore[no-untyped-def]
        segment = g.int64(g.block_y())
        i = g.int32((g.block() * threads + g.thread()) * 4)
        if i < lengths[segment]:
            a, b, c, d = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
            for query in range(group):
                row = segment * group + query
                x, y, z, w = g.load_f32x4(logits, row * logits_stride + i)
                offset = g.float32(0)
                if not as_mean:
                    offset = -lse[row] * g.float32(log2_e)
                a, b = joined(a, x, offset), joined(b, y, offset)
                c, d = joined(c, z, offset), joined(d, w, offset)
            if as_mean:
                factor = g.float32(share)
                a, b, c, d = a * factor, b * factor, c * factor, d * factor
            g.store_f32x4(weights, segment * weights_stride + i, a, b, c, d)

    return CudaKernel(
        kernel,
        "f32* i64 f32* i64 f32* i64*",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("token", 4 * group + 4, 3 * group),
    )


def select_topk_cuda(g: Any) -> CudaKernel:
    """Ascending ids of the largest weights of every segment, the lowest ids of equal ones; see
    select_topk_ref.

    Grid: a block for each segment.
    Shapes: ids int32 [segments][ids_stride], counts, lengths and budgets (k) int64 [segments], weights
    float32 [segments][weights_stride], candidates uint32 [segments][stride of candidates_stride]. Strides in
    numbers; weights_stride is a multiple of 4. No weight is NaN.
    Bytes: reads the weights twice, for the first digit of the k-th largest and for the candidates, which
    reach that digit; candidates are few where weights differ.
    """
    threads, warps, span, n_buckets = WARPS * 32, WARPS, SPAN, 2048
    per_thread, n_ahead = n_buckets // threads, 4
    n_held = 4 * n_ahead
    top, every = 1 << 31, 0xFFFFFFFF

    @g.inline
    def sort_key(x):  # type: ignore[no-untyped-def]
        """Unsigned numbers in the order of the floats, -0 as 0."""
        bits = g.bits_from_f32(x + g.float32(0))
        return g.uint32(bits ^ g.uint32(every if bits >> 31 else top))

    @g.inline
    def scan_warp(value, lane):  # type: ignore[no-untyped-def]
        """The sum over this lane and those below."""
        for k in range(5):
            other = g.int32(g.shuffle_up(value, 1 << k))
            if lane >= 1 << k:
                value = g.int32(value + other)
        return value

    @g.inline
    def sum_below(sums, lane, warp):  # type: ignore[no-untyped-def]
        """The sum of what the warps before this one left."""
        own = g.int32(0)
        if lane < warp:
            own = g.int32(sums[lane])
        return g.int32(g.warp_sum(own))

    @g.inline
    def find_bucket(histogram, sums, found, wanted, thread):  # type: ignore[no-untyped-def]
        """found: the bucket that holds the wanted-th largest key, and how many keys of it are wanted."""
        lane, warp = g.int32(thread % 32), g.int32(thread // 32)
        bucket, own = g.int32(n_buckets - 1 - per_thread * thread), g.int32(0)
        for j in range(per_thread):
            own = g.int32(own + histogram[bucket - j])
        through = scan_warp(own, lane)
        if lane == 31:
            sums[warp] = through
        g.sync_threads()
        before = g.int32(sum_below(sums, lane, warp) + through - own)
        for j in range(per_thread):
            here = g.int32(histogram[bucket - j])
            if before < wanted and wanted <= g.int32(before + here):
                found[0], found[1] = g.int32(bucket - j), g.int32(wanted - before)
            before = g.int32(before + here)
        g.sync_threads()

    @g.inline
    def clear(histogram, thread):  # type: ignore[no-untyped-def]
        for i in range(per_thread):
            histogram[thread + i * threads] = 0
        g.sync_threads()

    @g.inline
    def count_digits(histogram, keys, first, kept, low, shift, thread):  # type: ignore[no-untyped-def]
        """Counts the 11 bits from `shift` on of this warp's keys, where those above are as in `low`.

        The last digit is of 10 bits; the one above it is the same in all keys that count.
        """
        clear(histogram, thread)
        known = g.uint32(every << (21 if shift else 10))
        for i in range(g.int32(first + thread % 32), g.int32(first + kept), g.int32(32)):
            key = g.uint32(keys[i])
            if key & known == low:
                g.atomic_add_i32(histogram, g.int32(key >> shift) & (n_buckets - 1), 1)
        g.sync_threads()

    @g.inline
    def load_quads(held, n, weights, start, last, lane):  # type: ignore[no-untyped-def]
        """4 neighbouring weights of every lane, n times; all loads are under way at once."""
        for m in range(n):
            i = g.int32(start + m * span + lane * 4)
            a, b, c, d = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
            if i < last:
                a, b, c, d = g.load_f32x4(weights, i)
            at = m * 4
            held[at], held[at + 1], held[at + 2], held[at + 3] = a, b, c, d

    @g.inline
    def count_first_digits(histogram, weights, first, last, lane):  # type: ignore[no-untyped-def]
        for start in range(first, last, g.int32(n_ahead * span)):
            held = g.local_f32(n_held)
            load_quads(held, n_ahead, weights, start, last, lane)
            n_left = g.int32(last - start - lane * 4)
            for m in range(n_held):
                if n_left > m // 4 * span + m % 4:
                    g.atomic_add_i32(histogram, g.int32(sort_key(held[m]) >> 21), 1)

    @g.inline
    def keep(keys, ids, weights, first, last, low, lane):  # type: ignore[no-untyped-def]
        """Keys of at least `low` and their ids, in order, from `first` on; returns how many."""
        below, kept = g.uint32((1 << lane) - 1), g.int32(0)
        for start in range(first, last, g.int32(2 * span)):
            held, votes = g.local_f32(8), g.local_u32(8)
            load_quads(held, 2, weights, start, last, lane)
            for quad in range(2):
                i, place, total = g.int32(start + quad * span + lane * 4), g.int32(0), g.int32(0)
                for m in range(quad * 4, quad * 4 + 4):
                    fits = g.int32(i + m % 4) < last and sort_key(held[m]) >= low
                    votes[m] = g.ballot(1 if fits else 0)
                    place = g.int32(place + g.count_ones(votes[m] & below))
                    total = g.int32(total + g.count_ones(votes[m]))
                place = g.int32(place + first + kept)
                for m in range(quad * 4, quad * 4 + 4):
                    if votes[m] >> lane & 1:
                        keys[place], ids[place] = sort_key(held[m]), i + m % 4
                        place = g.int32(place + 1)
                kept = g.int32(kept + total)
        return kept

    @g.inline
    def write(out, keys, ids, n, low, n_equal, above, equal, lane):  # type: ignore[no-untyped-def]
        """Ids of keys above `low`, and of equal ones up to n_equal; above, equal: how many lie before."""
        below = g.uint32((1 << lane) - 1)
        for start in range(g.int32(0), n, g.int32(32)):
            i, key, token = g.int32(start + lane), g.uint32(0), g.uint32(0)
            if i < n:
                key, token = g.uint32(keys[i]), g.uint32(ids[i])
            is_above, is_equal = i < n and key > low, i < n and key == low
            above_votes, equal_votes = g.ballot(1 if is_above else 0), g.ballot(1 if is_equal else 0)
            own_above = g.int32(above + g.count_ones(above_votes & below))
            own_equal = g.int32(equal + g.count_ones(equal_votes & below))
            if is_above or (is_equal and own_equal < n_equal):
                out[own_above + min(own_equal, n_equal)] = token
            above = g.int32(above + g.count_ones(above_votes))
            equal = g.int32(equal + g.count_ones(equal_votes))

    def kernel(  # type: ignore[no-untyped-def]
        ids, ids_stride, counts, weights, weights_stride, lengths, budgets, candidates, stride, n_segments
    ):
        segment, thread = g.block(), g.thread()
        lane, warp = g.int32(thread % 32), g.int32(thread // 32)
        histogram, sums, equals = g.shared_i32(n_buckets), g.shared_i32(warps), g.shared_i32(warps)
        found = g.shared_i32(2)
        if segment >= n_segments[0]:
            return
        n = g.int32(lengths[segment])
        k = g.int32(max(0, min(g.int32(budgets[segment]), n)))
        ids = g.shifted(ids, g.int64(segment) * ids_stride)
        if thread == 0:
            counts[segment] = k
        if k == n:
            for i in range(thread, n, g.int32(threads)):
                ids[i] = i
            return
        if k == 0:
            return
        weights = g.shifted(weights, g.int64(segment) * weights_stride)
        keys = g.shifted(candidates, g.int64(segment) * stride)
        own_ids = g.shifted(keys, stride // 2)
        # a warp keeps the order of its own part, which needs no barriers
        part = g.int32((n + warps * span - 1) // (warps * span) * span)
        first = g.int32(warp * part)
        last = g.int32(min(first + part, n))
        clear(histogram, thread)
        count_first_digits(histogram, weights, first, last, lane)
        g.sync_threads()
        find_bucket(histogram, sums, found, k, thread)
        low, wanted = g.uint32(found[0] << 21), g.int32(found[1])
        kept = g.int32(keep(keys, own_ids, weights, first, last, low, lane))
        count_digits(histogram, keys, first, kept, low, 10, thread)
        find_bucket(histogram, sums, found, wanted, thread)
        low, wanted = g.uint32(low | g.uint32(found[0] << 10)), g.int32(found[1])
        count_digits(histogram, keys, first, kept, low, 0, thread)
        find_bucket(histogram, sums, found, wanted, thread)
        low, wanted = g.uint32(low | g.uint32(found[0])), g.int32(found[1])
        keys, own_ids = g.shifted(keys, first), g.shifted(own_ids, first)
        above, equal = g.int32(0), g.int32(0)
        for start in range(g.int32(0), kept, g.int32(32)):
            i, key = g.int32(start + lane), g.uint32(0)
            if i < kept:
                key = g.uint32(keys[i])
            above = g.int32(above + g.count_ones(g.ballot(1 if key > low else 0)))
            equal = g.int32(equal + g.count_ones(g.ballot(1 if i < kept and key == low else 0)))
        g.sync_threads()
        if lane == 0:
            sums[warp], equals[warp] = above, equal
        g.sync_threads()
        above, equal = sum_below(sums, lane, warp), sum_below(equals, lane, warp)
        write(ids, keys, own_ids, kept, low, wanted, above, equal, lane)

    return CudaKernel(
        kernel,
        "i32* i64 i64* f32* i64 i64* i64* u32* i64 i64*",
        threads,
        opcodes=("LDG.E.128", "ATOMS.POPC.INC"),
        work=Work("weight", 4, 1),
    )
