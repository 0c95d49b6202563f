"""Digests of pages: the box that stands for the keys of a page's tokens, made when a decode step fills it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work
from .page_scores import check_rows


def page_digests_ref(k: np.ndarray, page: int, centred: bool) -> np.ndarray:
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


def page_digests_cuda(g: Any, head_dim: int, kind: str, centred: bool) -> CudaKernel:
    """For every row whose token completes a page, the digest of the page's keys; other rows leave theirs.

    Key and digest are numbers of `kind`, halves in pairs in uint32; strides count numbers and are even.
    Positions from n_sinks on wrap around ring_len places, at least a page (kv_append_cuda).

    Grid: x, KV heads; y, rows.
    Shapes: digests [slots][Hk][pages][2 D], ring [slots][Hk][places][D], slots and positions int64 [rows].
    Raises: ValueError.
    """
    check_rows(head_dim, kind)
    threads, pairs = 64, head_dim // 2
    low, high = (g.low_f16, g.high_f16) if kind == "f16" else (g.low_bf16, g.high_bf16)
    pack = g.pack_f16 if kind == "f16" else g.pack_bf16
    halves = kind != "f32"

    @g.inline
    def load(rows, i):  # type: ignore[no-untyped-def]
        if halves:
            word = rows[i // 2]
            return low(word), high(word)
        return rows[i], rows[i + 1]

    @g.inline
    def store(rows, i, a, b):  # type: ignore[no-untyped-def]
        if halves:
            rows[i // 2] = pack(a, b)
        else:
            rows[i], rows[i + 1] = a, b

    @g.inline
    def next_place(place, n_sinks, ring_len):  # type: ignore[no-untyped-def]
        following = g.int32(place + 1)
        return g.int32(n_sinks) if following == n_sinks + ring_len else following

    def kernel(  # type: ignore[no-untyped-def]
        digests, slot_stride, head_stride, ring, ring_slot_stride, ring_head_stride, n_sinks, ring_len, page,
        slots, positions, n_rows,
    ):  # fmt: skip
        head, row = g.block(), g.block_y()
        if row >= n_rows[0]:
            return
        end = g.int32(positions[row] + 1)
        number = g.int32(g.uint32(end) // g.uint32(page)) - 1
        first = g.int32(number * page)
        if first + page != end:
            return
        if first >= n_sinks:
            first = g.int32(n_sinks + g.uint32(first - n_sinks) % g.uint32(ring_len))
        keys = slots[row] * ring_slot_stride + head * ring_head_stride
        at = slots[row] * slot_stride + head * head_stride + g.int64(number) * (2 * head_dim)
        for pair in range(g.thread(), pairs, threads):
            dim, place = 2 * pair, first
            top_a, top_b = load(ring, keys + g.int64(first) * head_dim + dim)
            least_a, least_b = top_a, top_b
            for _ in range(page):
                a, b = load(ring, keys + g.int64(place) * head_dim + dim)
                top_a, top_b = max(top_a, a), max(top_b, b)
                least_a, least_b = min(least_a, a), min(least_b, b)
                place = next_place(place, n_sinks, ring_len)
            if centred:
                centre_a, centre_b = (top_a + least_a) * g.float32(0.5), (top_b + least_b) * g.float32(0.5)
                spread_a, spread_b, place = g.float32(0), g.float32(0), first
                for _ in range(page):
                    a, b = load(ring, keys + g.int64(place) * head_dim + dim)
                    spread_a += g.absolute(a - centre_a)
                    spread_b += g.absolute(b - centre_b)
                    place = next_place(place, n_sinks, ring_len)
                spread_a = g.divide(spread_a, g.float32(page))
                spread_b = g.divide(spread_b, g.float32(page))
                top_a, top_b = centre_a + spread_a, centre_b + spread_b
                least_a, least_b = centre_a - spread_a, centre_b - spread_b
            store(digests, at + dim, top_a, top_b)
            store(digests, at + head_dim + dim, least_a, least_b)

    memory = "f32*" if kind == "f32" else "u32*"
    return CudaKernel(
        kernel,
        f"{memory} i64 i64 {memory} i64 i64 i32 i32 i32 i64* i64* i64*",
        threads,
        work=Work("key", (2 if halves else 4) * head_dim, (5 if centred else 2) * head_dim),
    )
