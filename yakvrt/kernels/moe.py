"""Mixture of experts: which experts a token visits, the packs of tokens per expert, and the weighted sum of
their results.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def route_ref(logits: np.ndarray, n_used: int, renormalise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Softmax over all experts, the best n_used of it, renormalised to sum 1 if asked.

    Shapes: logits [B, n_experts] -> ids [B, n_used] best first, weights [B, n_used].
    Source: Qwen3-MoE's router.
    """
    wide = logits.astype(np.float64)
    probabilities = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    ids = np.argsort(-probabilities, axis=1, kind="stable")[:, :n_used]
    weights = np.take_along_axis(probabilities, ids, axis=1)
    return ids, weights / weights.sum(axis=1, keepdims=True) if renormalise else weights


def dispatch_ref(ids: np.ndarray, n_experts: int, n_tokens: int) -> tuple[list[int], list[int]]:
    """Packs of up to n_tokens (token, choice) pairs: (expert per pack, pair per place or -1)."""
    experts: list[int] = []
    pairs: list[int] = []
    for expert in range(n_experts):
        mine = [int(pair) for pair in np.flatnonzero(ids.reshape(-1) == expert)]
        for start in range(0, len(mine), n_tokens):
            experts.append(expert)
            pack = mine[start : start + n_tokens]
            pairs += pack + [-1] * (n_tokens - len(pack))
    return experts, pairs


def combine_ref(out: np.ndarray, results: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Shapes: out [B, E], results [B, n_used, E], weights [B, n_used] -> out + sum of weights * results."""
    return out + (results.astype(np.float64) * weights[..., None]).sum(axis=1)


def max_packs(n_rows: int, n_used: int, n_experts: int, n_tokens: int) -> int:
    """The most packs that n_rows tokens can make."""
    pairs = n_rows * n_used
    return pairs if n_tokens == 1 else pairs // n_tokens + min(n_experts, pairs)


def moe_route_cpu() -> Any:
    """Args: ids (int64), weights, logits, logits_stride, n_experts, n_used, renormalise, n_rows*."""
    from ..cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        ids, weights, logits = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        stride, n_experts, n_used = v.get_i64(args + 24), v.get_i64(args + 32), v.get_i64(args + 40)
        renormalise, n_rows = v.get_i64(args + 48), v.get_i64(v.get_i64(args + 56))
        for row in range(n_rows * thread // n_threads, n_rows * (thread + 1) // n_threads):
            source = logits + row * stride
            largest = v.get_f32(source)
            for expert in range(1, n_experts):
                largest = max(largest, v.get_f32(source + expert * 4))
            total = np.float32(0)
            for expert in range(n_experts):
                total += v.scalar_exp(v.get_f32(source + expert * 4) - largest)
            chosen = np.float32(0)
            for choice in range(n_used):
                best, best_logit = -1, np.float32(0)
                for expert in range(n_experts):
                    taken = False
                    for earlier in range(choice):
                        taken |= v.get_i64(ids + (row * n_used + earlier) * 8) == expert
                    logit = v.get_f32(source + expert * 4)
                    if not taken and (best < 0 or logit > best_logit):
                        best, best_logit = expert, logit
                probability = v.scalar_exp(best_logit - largest) / total
                chosen += probability
                v.put_i64(ids + (row * n_used + choice) * 8, best)
                v.put_f32(weights + (row * n_used + choice) * 4, probability)
            if renormalise:
                for choice in range(n_used):
                    cell = weights + (row * n_used + choice) * 4
                    v.put_f32(cell, v.get_f32(cell) / chosen)

    return kernel


def moe_dispatch_cpu(n_tokens: int) -> Any:
    """Sorts (token, choice) pairs into packs of one expert each. One thread does it: it is a counting sort.

    Args: pack_expert, pack_row, place_of_pair, n_places, ids, n_experts, n_used, n_rows*, starts; all int64.
    pack_row holds the token of every place (-1: filler), place_of_pair where a pair went, n_places how many
    places are in use; starts is scratch of n_experts.
    """
    from ..cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        if thread:
            return
        pack_expert, pack_row, place_of_pair = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        n_places, ids, n_experts = v.get_i64(args + 24), v.get_i64(args + 32), v.get_i64(args + 40)
        n_used, n_rows, starts = v.get_i64(args + 48), v.get_i64(v.get_i64(args + 56)), v.get_i64(args + 64)
        n_pairs = n_rows * n_used
        for expert in range(n_experts):
            v.put_i64(starts + expert * 8, 0)
        for pair in range(n_pairs):
            cell = starts + v.get_i64(ids + pair * 8) * 8
            v.put_i64(cell, v.get_i64(cell) + 1)
        place = 0
        for expert in range(n_experts):
            count = v.get_i64(starts + expert * 8)
            v.put_i64(starts + expert * 8, place)
            for pack in range((count + n_tokens - 1) // n_tokens):
                v.put_i64(pack_expert + (place // n_tokens + pack) * 8, expert)
                for i in range(n_tokens):
                    v.put_i64(pack_row + (place + pack * n_tokens + i) * 8, -1)
            place += (count + n_tokens - 1) // n_tokens * n_tokens
        v.put_i64(n_places, place)
        for pair in range(n_pairs):
            cell = starts + v.get_i64(ids + pair * 8) * 8
            place = v.get_i64(cell)
            v.put_i64(cell, place + 1)
            v.put_i64(pack_row + place * 8, pair // n_used)
            v.put_i64(place_of_pair + pair * 8, place)

    return kernel


def moe_combine_cpu() -> Any:
    """Adds the experts' results, weighted, to every row.

    Args: out, out_stride, results, results_stride, place_of_pair, weights, width, n_used, n_rows*.
    """
    from ..cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, out_stride, results = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        results_stride, place_of_pair = v.get_i64(args + 24), v.get_i64(args + 32)
        weights, width, n_used = v.get_i64(args + 40), v.get_i64(args + 48), v.get_i64(args + 56)
        n_rows = v.get_i64(v.get_i64(args + 64))
        n_vectors = width // 16
        n_units = n_rows * n_vectors
        for unit in range(n_units * thread // n_threads, n_units * (thread + 1) // n_threads):
            row, offset = unit // n_vectors, unit % n_vectors * 64
            target = out + row * out_stride + offset
            total = v.load_f32(target)
            for choice in range(n_used):
                pair = row * n_used + choice
                place = v.get_i64(place_of_pair + pair * 8)
                result = v.load_f32(results + place * results_stride + offset)
                total = v.fma(v.splat(v.get_f32(weights + pair * 4)), result, total)
            v.store_f32(target, total)

    return kernel
