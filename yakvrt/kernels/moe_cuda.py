"""Mixture of experts on a GPU: routing, packs of tokens per expert, the weighted sum; truths: moe.py.

The grouped matmuls between (matmul_cuda.py, matmul_bf16_cuda.py) read the weights of a pack's expert. Packs
of one expert follow each other, so that blocks that share its weights run at the same time.
"""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel, Work

MAX_EXPERTS = 512
LOG2_E = 1.4426950408889634


def moe_route_cuda(g: Any) -> CudaKernel:
    """Contiguous rows of `n_experts` logits, at most 512; the first n_used are renormalised if asked.

    Shapes: ids int32 [B, n_used] best first, weights [B, n_used].
    Grid: a block, of one warp, for each row.
    """
    held_numbers = MAX_EXPERTS // 32
    lowest, log2_e = float("-inf"), LOG2_E

    def kernel(ids, weights, logits, n_experts, n_used, renormalise, n_rows):  # type: ignore[no-untyped-def]
        row, lane = g.block(), g.lane()
        if row < n_rows[0]:
            logits = g.shifted(logits, g.int64(row) * n_experts)
            held = g.local_f32(held_numbers)
            largest = g.float32(lowest)
            for i in range(held_numbers):
                held[i] = g.float32(lowest)
                if i * 32 + lane < n_experts:
                    held[i] = logits[i * 32 + lane]
                largest = max(largest, held[i])
            largest = g.warp_max(largest)
            total = g.float32(0)
            for i in range(held_numbers):
                total += g.exp2((held[i] - largest) * g.float32(log2_e))
            total = g.warp_sum(total)
            at = g.int64(row) * n_used
            chosen = g.float32(0)
            for choice in range(n_used):
                best, best_id = g.float32(lowest), g.int32(MAX_EXPERTS)
                for i in range(held_numbers):
                    if held[i] > best:
                        best, best_id = held[i], g.int32(i * 32 + lane)
                for step in (16, 8, 4, 2, 1):
                    other, other_id = g.shuffle_xor(best, step), g.int32(g.shuffle_xor(best_id, step))
                    if other > best or (other == best and other_id < best_id):
                        best, best_id = other, other_id
                for i in range(held_numbers):
                    if i * 32 + lane == best_id:
                        held[i] = g.float32(lowest)
                probability = g.divide(g.exp2((best - largest) * g.float32(log2_e)), total)
                chosen += probability
                if lane == 0:
                    ids[at + choice] = min(best_id, n_experts - 1)  # even of NaN
                    weights[at + choice] = probability
            g.sync_warp()
            if renormalise:
                for choice in range(lane, n_used, 32):
                    weights[at + choice] = g.divide(weights[at + choice], chosen)

    return CudaKernel(kernel, "i32* f32* f32* i32 i32 i32 i64*", 32, work=Work("logit", 4, 40))


def moe_dispatch_cuda(g: Any, n_tokens: int) -> CudaKernel:
    """Sorts (token, choice) pairs into packs of n_tokens places of one expert each, in the order of pairs.

    Shapes: pack_expert int32 [packs], pack_row int32 [packs * n_tokens]: the token of every place (-1:
    filler), place_of_pair int32 [B, n_used], n_places int64 [1], ids int32 [B, n_used].
    Grid: a block for each expert.
    """
    threads = 256
    warps = threads // 32

    def kernel(  # type: ignore[no-untyped-def]
        pack_expert, pack_row, place_of_pair, n_places, ids, n_experts, n_used, n_rows
    ):
        expert, thread = g.block(), g.thread()
        lane, warp = g.lane(), thread // 32
        n_pairs = g.int32(n_rows[0] * n_used)
        counts = g.shared_i32(MAX_EXPERTS)
        for i in range(thread, n_experts, threads):
            counts[i] = g.int32(0)
        g.sync_threads()
        for pair in range(thread, n_pairs, threads):
            g.atomic_add_i32(counts, ids[pair], g.int32(1))
        g.sync_threads()
        before, in_all = g.int32(0), g.int32(0)
        for i in range(lane, n_experts, 32):
            padded = g.int32((counts[i] + (n_tokens - 1)) // n_tokens * n_tokens)
            in_all += padded
            if i < expert:
                before += padded
        first, in_all = g.int32(g.warp_sum(g.int32(before))), g.int32(g.warp_sum(g.int32(in_all)))
        own = g.int32(counts[expert])
        n_packs = g.int32((own + (n_tokens - 1)) // n_tokens)
        if expert == 0 and thread == 0:
            n_places[0] = in_all
        for pack in range(thread, n_packs, threads):
            pack_expert[first // n_tokens + pack] = expert
        for i in range(own + thread, n_packs * n_tokens, threads):
            pack_row[first + i] = g.int32(-1)

        # a warp takes one run of pairs; places of this expert's pairs follow those of the warps before
        run = g.int32((n_pairs + (threads - 1)) // threads * 32)
        begin, end = g.int32(warp * run), g.int32(min((warp + 1) * run, n_pairs))
        found = g.int32(0)
        for pair in range(begin + lane, end, 32):
            if ids[pair] == expert:
                found += g.int32(1)
        of_warps = g.shared_i32(warps)
        found = g.int32(g.warp_sum(g.int32(found)))
        if lane == 0:
            of_warps[warp] = found
        g.sync_threads()
        place = g.int32(first)
        for i in range(warp):
            place += of_warps[i]
        for start in range(begin, end, 32):
            pair = g.int32(start + lane)
            mine = pair < end and ids[min(pair, n_pairs - 1)] == expert
            lanes = g.ballot(g.uint32(mine))
            if mine:
                lower = g.uint32(lanes & ((g.uint32(1) << g.uint32(lane)) - 1))
                at = g.int32(place + g.count_ones(lower))
                pack_row[at] = g.int32(g.uint32(pair) // g.uint32(n_used))
                place_of_pair[pair] = at
            place += g.count_ones(lanes)

    return CudaKernel(kernel, "i32* i32* i32* i64* i32* i32 i32 i64*", threads, work=Work("pair", 8, 8))


def moe_combine_cuda(g: Any) -> CudaKernel:
    """Adds the experts' results, weighted, to every row. Width and strides are multiples of 4, in numbers.

    Shapes: out [B, width], results [places, width], place_of_pair int32 [B, n_used], weights [B, n_used].
    Grid: x, blocks of 128 threads with 4 numbers of a row each; y, rows.
    """
    threads = 128

    def kernel(  # type: ignore[no-untyped-def]
        out, out_stride, results, results_stride, place_of_pair, weights, width, n_used, n_rows
    ):
        row, column = g.block_y(), (g.block() * threads + g.thread()) * 4
        if row < n_rows[0] and column < width:
            at = g.int64(row) * out_stride + column
            a, b, c, d = g.load_f32x4(out, at)
            for pair in range(row * n_used, (row + 1) * n_used):
                weight = weights[pair]
                place = g.int64(place_of_pair[pair])
                e, f, h, j = g.load_constant_f32x4(results, place * results_stride + column)
                a, b, c, d = (
                    g.fma(weight, e, a),
                    g.fma(weight, f, b),
                    g.fma(weight, h, c),
                    g.fma(weight, j, d),
                )
            g.store_f32x4(out, at, a, b, c, d)

    return CudaKernel(
        kernel,
        "f32* i32 f32* i32 i32* f32* i32 i32 i64*",
        threads,
        opcodes=("LDG.E.128", "LDG.E.128.CONSTANT", "STG.E.128"),
        work=Work("number of an expert's result", 4, 2),
    )
