"""Logits of a KV head's queries with rows that stand for pages, or with keys: what pages are chosen by."""

from __future__ import annotations

from typing import Any

import numpy as np

from .attend_decode_cuda import LOG2_E
from .attend_fragments import LEAST
from .attend_plain_cuda import MAX_HEAD_DIM
from .cuda_kernel import CudaKernel, Work

MAX_GROUP = 16  # queries of a KV head
UNITS = 128  # pages or keys of a block, one for each thread


def page_scores_ref(q: np.ndarray, rows: np.ndarray, boxes: bool) -> np.ndarray:
    """The dot product of a query with each key, or the largest one with a point of each box.

    Shapes: q float32 [H, G, D], rows keys [H, n, D], or boxes [H, n, 2 * D], [high | low] corners -> float32
    [H, G, n].
    """
    if boxes:
        q = np.concatenate([np.maximum(q, 0), np.minimum(q, 0)], axis=-1)
    return q @ rows.astype(np.float32, copy=False).transpose(0, 2, 1)


def check_rows(head_dim: int, kind: str) -> None:
    """Raises: ValueError for rows that the kernels of pages do not take."""
    if head_dim % 2 or not 2 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(
            f"no CUDA kernel for pages of heads of {head_dim} numbers: use even ones up to {MAX_HEAD_DIM}"
        )
    if kind not in ("f32", "f16", "bf16"):
        raise ValueError(f"no CUDA kernel for pages of {kind} rows: use f32, f16 or bf16")


def page_scores_cuda(g: Any, head_dim: int, kind: str, boxes: bool) -> CudaKernel:
    """Logits, times `scale`, of the queries of every KV head with its units, boxes of pages or keys; and of
    each block of the grid the largest one and the sum of exponentials relative to it, -1e30 and 0 of none.
    A thread takes one unit and reads its row once for all of up to 16 queries: rows may lie in host memory.

    Entry j of a segment, below its length, is unit (firsts + j) modulo ends, where firsts + j < 2 * ends.
    Further entries stay as they are.

    Grid: x, blocks of 128 units, for the longest segment; y, segments: rows times KV heads.
    Shapes: logits float32 [segments][group][logits_stride], parts float32 [segments][group][n_parts][2], q
    float32 with the heads of a row side by side; rows [slots][Hk][n][D], of boxes [2 D], halves in pairs in
    uint32; slots, firsts, ends int64 [rows], lengths int64 [segments]. Strides count numbers; those of rows
    are even, and multiples of 8 where head_dim is one.
    Raises: ValueError.
    """
    check_rows(head_dim, kind)
    threads, warps, most, width = UNITS, UNITS // 32, MAX_GROUP, head_dim * (2 if boxes else 1)
    per_word, halves = (1, False) if kind == "f32" else (2, True)
    quads = head_dim % 8 == 0
    step = (16 if width % 16 == 0 else 8) if quads else 2  # numbers of a row in registers
    words = step // per_word
    n_queries, n_held = most * width, warps * most
    least, log2_e = LEAST, LOG2_E
    low, high = (g.low_f16, g.high_f16) if kind == "f16" else (g.low_bf16, g.high_bf16)

    @g.inline
    def load_quads(held, row, at):  # type: ignore[no-untyped-def]
        for i in range(0, words, 4):
            if halves:
                a, b, c, d = g.load_u32x4(row, at // per_word + i)
                held[2 * i], held[2 * i + 1] = low(a), high(a)
                held[2 * i + 2], held[2 * i + 3] = low(b), high(b)
                held[2 * i + 4], held[2 * i + 5] = low(c), high(c)
                held[2 * i + 6], held[2 * i + 7] = low(d), high(d)
            else:
                held[i], held[i + 1], held[i + 2], held[i + 3] = g.load_f32x4(row, at + i)

    @g.inline
    def load_pair(held, row, at):  # type: ignore[no-untyped-def]
        if halves:
            word = row[at // 2]
            held[0], held[1] = low(word), high(word)
        else:
            held[0], held[1] = row[at], row[at + 1]

    @g.inline
    def dot_quads(total, held, query):  # type: ignore[no-untyped-def]
        for i in range(0, step, 4):
            a, b, c, d = g.load_f32x4(query, i)
            total = g.fma(held[i + 1], b, g.fma(held[i], a, total))
            total = g.fma(held[i + 3], d, g.fma(held[i + 2], c, total))
        return total

    @g.inline
    def dot_pair(total, held, query):  # type: ignore[no-untyped-def]
        return g.fma(held[1], query[1], g.fma(held[0], query[0], total))

    load, dot = (load_quads, dot_quads) if quads else (load_pair, dot_pair)

    def kernel(  # type: ignore[no-untyped-def]
        logits, logits_stride, parts, n_parts, q, q_stride, rows, slot_stride, head_stride, slots, firsts,
        lengths, ends, n_rows, n_heads, group, scale,
    ):  # fmt: skip
        segment, thread = g.int64(g.block_y()), g.thread()
        lane, warp = g.lane(), thread // 32
        row = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if row >= n_rows[0]:
            return
        head = g.int32(segment - row * n_heads)
        queries = g.shared_f32(n_queries)
        given = g.shifted(q, g.int64(row) * q_stride + head * group * head_dim)
        for i in range(thread, group * head_dim, threads):
            number = given[i]
            if boxes:
                at = i // head_dim * width + i % head_dim
                queries[at], queries[at + head_dim] = max(number, g.float32(0)), min(number, g.float32(0))
            else:
                queries[i] = number
        g.sync_threads()
        entry = g.int32(g.block() * threads + thread)
        is_unit = entry < lengths[segment]
        sums = g.local_f32(most)
        for i in range(most):
            sums[i] = g.float32(0)
        if is_unit:
            unit = firsts[row] + entry
            if unit >= ends[row]:
                unit -= ends[row]
            place = slots[row] * slot_stride + head * head_stride + unit * width
            own = g.shifted(rows, place // per_word)
            for at in range(0, width, step):
                held = g.local_f32(step)
                load(held, own, at)
                for i in range(most):
                    if i < group:
                        sums[i] = dot(sums[i], held, g.shifted(queries, i * width + at))
        maxima, totals = g.shared_f32(n_held), g.shared_f32(n_held)
        for i in range(most):
            if i < group:
                logit, weight = sums[i] * scale, g.float32(0)
                if is_unit:
                    logits[(segment * group + i) * logits_stride + entry] = logit
                else:
                    logit = g.float32(least)
                largest = g.warp_max(logit)
                if is_unit:
                    weight = g.exp2((logit - largest) * g.float32(log2_e))
                total = g.warp_sum(weight)
                if lane == 0:
                    maxima[warp * most + i], totals[warp * most + i] = largest, total
        g.sync_threads()
        if thread < group:
            largest, total = g.float32(least), g.float32(0)
            for i in range(warps):
                largest = max(largest, maxima[i * most + thread])
            for i in range(warps):
                factor = g.exp2((maxima[i * most + thread] - largest) * g.float32(log2_e))
                total = g.fma(factor, totals[i * most + thread], total)
            place = ((segment * group + thread) * n_parts + g.block()) * 2
            parts[place], parts[place + 1] = largest, total

    memory = "f32*" if kind == "f32" else "u32*"
    return CudaKernel(
        kernel,
        f"f32* i64 f32* i32 f32* i32 {memory} i64 i64 i64* i64* i64* i64* i64* i32 i32 f32",
        threads,
        opcodes=("LDG.E.128", "LDS.128", "MUFU.EX2") if quads else ("MUFU.EX2",),
        work=Work("unit of a KV head", (4 // per_word) * width, 2 * width),
    )
