"""CUDA kernels of the rest of a YAKV step's softmax: its normaliser, and the tail (see yakv_tail.py)."""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel, Work
from .higgs_layout import BLOCK_TOKENS

LOG2_E, LN_2 = 1.4426950408889634, 0.6931471805599453
HEAD_DIMS = (48, 64, 80, 96, 112, 128, 192, 256)
BLOCKS = 64  # blocks of tokens that a block of threads of yakv_tail_cuda sums


def log_sum_exp_cuda(g: Any) -> CudaKernel:
    """The normaliser of every query from the parts of its softmax.

    Grid: blocks of 4 queries.
    Shapes: lse float32 [n], stats float32 [n][n_parts][2]: largest logit, and sum of exponentials relative to
    it; a part without logits has the largest -1e30 and the sum 0. Further parts are the first n_exact of
    partials, float32 [n][n_partials][2], whose largest is in powers of two (attend_decode_cuda).
    """
    threads, log2_e, ln_2, least = 128, LOG2_E, LN_2, -1e30

    def kernel(lse, stats, n_parts, partials, n_partials, n_exact, n_queries):  # type: ignore[no-untyped-def]
        query, lane = g.int32(g.block() * 4 + g.thread() // 32), g.int32(g.thread() % 32)
        if query >= n_queries[0]:
            return
        stats = g.shifted(stats, g.int64(query) * n_parts * 2)
        partials = g.shifted(partials, g.int64(query) * n_partials * 2)
        largest, total = g.float32(least), g.float32(0)
        for i in range(lane, n_parts, g.int32(32)):
            largest = max(largest, stats[2 * i])
        for i in range(lane, n_exact, g.int32(32)):
            largest = max(largest, partials[2 * i] * g.float32(ln_2))
        largest = g.warp_max(largest)
        for i in range(lane, n_parts, g.int32(32)):
            total += stats[2 * i + 1] * g.exp2((stats[2 * i] - largest) * g.float32(log2_e))
        for i in range(lane, n_exact, g.int32(32)):
            total += partials[2 * i + 1] * g.exp2(partials[2 * i] - largest * g.float32(log2_e))
        total = g.warp_sum(total)
        if lane == 0:
            lse[query] = g.fma(g.log2(total), g.float32(ln_2), largest)

    return CudaKernel(
        kernel,
        "f32* f32* i32 f32* i32 i32 i64*",
        threads,
        opcodes=("MUFU.EX2", "MUFU.LG2"),
        work=Work("part", 8, 4),
    )


def yakv_tail_cuda(g: Any, group: int, head_dim: int) -> CudaKernel:
    """The share of the probability of tokens that were not selected, times the mean value of their block of
    64; see tail_ref. Parts of a segment become partials (see attend_decode_cuda) from `first` on, relative to
    one normaliser; without tokens their weight is 0.

    Grid: x, parts of BLOCKS blocks of tokens, for the longest segment; y, segments.
    Shapes: sums float32 [segments][G][n_partials][D], stats float32 [segments][G][n_partials][2]; logits
    float32 [segments][G][logits_stride], lse float32 [segments][G], shares float32 [slots][Hk][G], the part
    of the mass that counts; lengths and counts int64 [segments], ids int32 [segments][ids_stride], ascending;
    values uint32 (pairs of float16) with strides in words. Lengths are multiples of 64, logits_stride one of
    4.
    Raises: ValueError for a size without a kernel.
    """
    if head_dim not in HEAD_DIMS:
        raise ValueError(
            f"a head dimension of {head_dim} has no CUDA kernel: supported are"
            f" {', '.join(map(str, HEAD_DIMS))}"
        )
    if not 1 <= group <= 16:
        raise ValueError(f"a group of {group} queries has no CUDA kernel: 1 to 16 are supported")
    threads, columns, n_blocks, block_tokens = 256, head_dim // 2, BLOCKS, BLOCK_TOKENS
    shares, n_marks, n_masses = threads // columns, BLOCKS * 2, group * BLOCKS
    n_own, n_shared, log2_e = 2 * group, shares * head_dim, LOG2_E

    @g.inline
    def first_not_below(ids, count, token, lane):  # type: ignore[no-untyped-def]
        """How many ids lie below the token: a search of 32 places at a time."""
        low, size = g.int32(0), count
        while size > 0:
            step = g.int32((size + 31) // 32)
            at, is_below = g.int32(lane * step), False
            if at < size:
                is_below = ids[g.int32(low + at)] < token
            n_below = g.int32(g.count_ones(g.ballot(1 if is_below else 0)))
            if n_below == 0:
                size = g.int32(0)
            else:
                last = g.int32((n_below - 1) * step + 1)
                low, size = g.int32(low + last), g.int32(min(step - 1, size - last))
        return low

    def kernel(  # type: ignore[no-untyped-def]
        sums,
        stats,
        first,
        n_partials,
        logits,
        logits_stride,
        lse,
        lengths,
        ids,
        ids_stride,
        counts,
        values,
        slot_stride,
        head_stride,
        slots,
        n_heads,
        shares_of,
        n_rows,
    ):
        part, segment, thread = g.block(), g.block_y(), g.thread()
        lane, warp = g.int32(thread % 32), g.int32(thread // 32)
        row = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if row >= n_rows[0]:
            return
        marks, bounds = g.shared_i32(n_marks), g.shared_i32(2)
        masses, partial = g.shared_f32(n_masses), g.shared_f32(n_shared)
        start = g.int32(part * n_blocks * block_tokens)
        n = g.int32(max(0, min(g.int32(lengths[segment]) - start, n_blocks * block_tokens)))
        n_used = g.int32(n // block_tokens)
        ids = g.shifted(ids, g.int64(segment) * ids_stride)
        count = g.int32(counts[segment])
        if thread < n_marks:
            marks[thread] = 0
        if warp < 2:
            bound = g.int32(first_not_below(ids, count, g.int32(start + warp * n), lane))
            if lane == 0:
                bounds[warp] = bound
        g.sync_threads()
        for i in range(g.int32(bounds[0] + thread), g.int32(bounds[1]), g.int32(threads)):
            token = g.int32(ids[i] - start)
            g.atomic_add_i32(marks, token // 32, g.int32(1 << token % 32))
        g.sync_threads()
        quarter, side = g.int32(lane % 16), g.int32(lane // 16)
        own_shares = (slots[row] * n_heads + (segment - row * n_heads)) * group
        for unit in range(g.int32(warp * 2), g.int32(n_used * group), g.int32(threads // 16)):
            own = g.int32(min(unit + side, n_used * group - 1))
            query, block = g.int32(own % group), g.int32(own // group)
            at = g.int64(segment) * group + query
            token = g.int32(block * block_tokens + quarter * 4)
            a, b, c, d = g.load_f32x4(logits, at * logits_stride + start + token)
            bits = g.uint32(marks[token // 32]) >> g.uint32(token % 32)
            factor, offset = g.float32(log2_e), -lse[at] * g.float32(log2_e)
            mass = g.float32(0)
            if bits & 1 == 0:
                mass += g.exp2(g.fma(a, factor, offset))
            if bits & 2 == 0:
                mass += g.exp2(g.fma(b, factor, offset))
            if bits & 4 == 0:
                mass += g.exp2(g.fma(c, factor, offset))
            if bits & 8 == 0:
                mass += g.exp2(g.fma(d, factor, offset))
            for step in (8, 4, 2, 1):
                mass += g.shuffle_xor(mass, step)
            if quarter == 0 and g.int32(unit + side) < g.int32(n_used * group):
                masses[query * n_blocks + block] = mass * shares_of[own_shares + query]
        g.sync_threads()
        column, turn = g.int32(thread % columns), g.int32(thread // columns)
        mixed = g.local_f32(n_own)
        for i in range(n_own):
            mixed[i] = g.float32(0)
        if turn < shares:
            place = slots[row] * slot_stride + (segment - row * n_heads) * head_stride + column
            values = g.shifted(values, place + g.int64(part) * n_blocks * columns)
            for block in range(turn, n_used, g.int32(shares)):
                word = values[block * columns]
                for query in range(group):
                    mass = masses[query * n_blocks + block]
                    mixed[2 * query] = g.fma(mass, g.low_f16(word), mixed[2 * query])
                    mixed[2 * query + 1] = g.fma(mass, g.high_f16(word), mixed[2 * query + 1])
        for query in range(group):
            if turn < shares:
                partial[turn * head_dim + 2 * column] = mixed[2 * query]
                partial[turn * head_dim + 2 * column + 1] = mixed[2 * query + 1]
            g.sync_threads()
            to = (g.int64(segment) * group + query) * n_partials + first + part
            if thread < head_dim:
                total = partial[thread]
                for other in range(1, shares):
                    total += partial[other * head_dim + thread]
                sums[to * head_dim + thread] = total
            g.sync_threads()
        if thread < group:
            total = g.float32(0)
            for block in range(g.int32(0), n_used, g.int32(1)):
                total += masses[thread * n_blocks + block]
            query = g.int64(segment) * group + thread
            to = (query * n_partials + first + part) * 2
            stats[to], stats[to + 1] = lse[query] * g.float32(log2_e), total

    return CudaKernel(
        kernel,
        "f32* f32* i32 i32 f32* i64 f32* i64* i32* i64 i64* u32* i64 i64 i64* i32 f32* i64*",
        threads,
        opcodes=("LDG.E.128", "MUFU.EX2"),
        work=Work("token", 4 * group + head_dim // 32, 4 * group + group * head_dim // 32),
    )
