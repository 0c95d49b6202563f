"""Keys as rows of low rank, and a CUDA kernel that makes those of chunks again (ShadowKV)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work
from .rope_table import RopeTable


@dataclass(frozen=True, slots=True)
class LowRankKeys:
    """K ~ left @ basis, in bfloat16. Shapes: left [n, r], basis [Hk, r, D]."""

    left: np.ndarray
    basis: np.ndarray

    @classmethod
    def of(cls, k: np.ndarray, n: int, rank: int) -> LowRankKeys:
        """The best rank for all tokens, kept for the first n; nothing for none. Shapes: k [Hk, tokens, D]."""
        from ml_dtypes import bfloat16

        heads, n_tokens, dim = k.shape
        rank = min(rank, heads * dim)
        if n == 0:
            return cls(np.zeros((0, rank), bfloat16), np.zeros((heads, rank, dim), bfloat16))
        joint = k.swapaxes(0, 1).reshape(n_tokens, heads * dim)
        _, vectors = np.linalg.eigh(joint.T.astype(np.float64) @ joint)  # ascending
        main = vectors[:, ::-1][:, :rank].astype(np.float32)
        basis = main.reshape(heads, dim, -1).swapaxes(1, 2)
        return cls((joint[:n] @ main).astype(bfloat16), np.ascontiguousarray(basis).astype(bfloat16))

    def rows(self, heads: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Keys of (head, position) pairs in order of heads.

        Shapes: heads, positions [n] -> float32 [n, D].
        """
        left = self.left[positions].astype(np.float32)
        out = np.empty((len(left), self.basis.shape[2]), np.float32)
        for head, basis in enumerate(self.basis):
            first, last = np.searchsorted(heads, (head, head + 1))
            out[first:last] = left[first:last] @ basis.astype(np.float32)
        return out


def low_rank_keys_ref(
    keys: LowRankKeys, rope: RopeTable, heads: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Keys of (head, position) pairs in order of heads, turned by RoPE.

    Shapes: heads, positions [n] -> float32 [n, D].
    """
    return rope.rotate(keys.rows(heads, positions), positions)


def low_rank_keys_cuda(g: Any, head_dim: int, kind: str) -> CudaKernel:
    """low_rank_keys_ref for the chunks that came into a cache, rounded to `kind`: for every place i of the
    first n_filled whose `fresh` is 1 the keys of chunk numbers[recalled[i]]. A warp takes a place, its lanes
    two neighbours of a row's low half each, and their partners under RoPE.

    Grid: x, blocks of 4 places; y, segments: rows times KV heads.
    Shapes: cache rows of `kind`, halves in pairs in uint32; left [slots][...][rank] and basis
    [slots][Hk][rank][D] bf16 in pairs in uint32, rank a multiple of 8; table float32 [positions][D], as
    RopeTable; numbers and recalled int32; all with strides of slots and heads in numbers. fresh int32
    [B * Hk][most_places]; n_filled int64 [B * Hk].
    Raises: ValueError.
    """
    if head_dim % 4:
        raise ValueError(f"no CUDA kernel for keys of low rank of {head_dim} numbers: use a multiple of 4")
    if kind not in ("f32", "f16", "bf16"):
        raise ValueError(f"no CUDA kernel for keys of low rank in {kind}: use f32, f16 or bf16")
    warps, tile, step, n_keys = 4, 32, 8, 8  # numbers of a row staged at once, and loaded; keys of a turn
    threads, staged_numbers, n_sums = warps * 32, warps * tile * n_keys, 4 * n_keys
    quads, turns, row_words = head_dim // 4, -(-head_dim // 128), head_dim // 2
    halves, half = kind != "f32", head_dim // 2
    pack = g.pack_f16 if kind == "f16" else g.pack_bf16

    @g.inline
    def store(cache, at, a, b):  # type: ignore[no-untyped-def]
        if halves:
            cache[at // 2] = pack(a, b)
        else:
            cache[at], cache[at + 1] = a, b

    @g.inline
    def stage(staged, row, piece, a, b, c, d):  # type: ignore[no-untyped-def]
        """8 neighbouring numbers of a row, side by side with those of the other rows."""
        at = g.int32(piece * 8 * n_keys + row)
        staged[at], staged[at + n_keys] = g.low_bf16(a), g.high_bf16(a)
        staged[at + 2 * n_keys], staged[at + 3 * n_keys] = g.low_bf16(b), g.high_bf16(b)
        staged[at + 4 * n_keys], staged[at + 5 * n_keys] = g.low_bf16(c), g.high_bf16(c)
        staged[at + 6 * n_keys], staged[at + 7 * n_keys] = g.low_bf16(d), g.high_bf16(d)

    def kernel(  # type: ignore[no-untyped-def]
        cache, cache_slot_stride, cache_head_stride, left, left_stride, basis, basis_slot_stride,
        basis_head_stride, rank, table, numbers, numbers_slot_stride, numbers_head_stride, recalled,
        recalled_slot_stride, recalled_head_stride, fresh, most_places, n_filled, slots, n_rows, n_heads,
        page,
    ):  # fmt: skip
        segment, lane, warp = g.int64(g.block_y()), g.lane(), g.int32(g.thread() // 32)
        row = g.int32(g.uint32(segment) // g.uint32(n_heads))
        all_staged = g.shared_f32(staged_numbers)
        if row >= n_rows[0]:
            return
        place = g.int32(g.block() * warps + warp)
        if place >= n_filled[segment] or fresh[segment * most_places + place] == 0:
            return
        slot, head = slots[row], segment - row * n_heads
        chunk = recalled[slot * recalled_slot_stride + head * recalled_head_stride + place]
        number = numbers[slot * numbers_slot_stride + head * numbers_head_stride + chunk]
        position = g.int64(number) * page
        rows = g.shifted(left, (slot * left_stride + position * rank) // 2)
        columns = g.shifted(basis, (slot * basis_slot_stride + head * basis_head_stride) // 2)
        target = slot * cache_slot_stride + head * cache_head_stride + g.int64(place) * page * head_dim
        staged = g.shifted(all_staged, warp * (tile * n_keys))
        staged_row, piece = g.int32(lane // 4), g.int32(lane % 4)
        for first in range(g.int32(0), page, g.int32(n_keys)):
            for turn in range(turns):
                quad = g.int32(turn * 32 + lane)
                own = g.int32(min(quad, g.int32(quads - 1)))  # of lanes too many, another's
                sums = g.local_f32(n_sums)
                for i in range(n_sums):
                    sums[i] = g.float32(0)
                for at in range(g.int32(0), rank, g.int32(tile)):
                    a, b, c, d = g.uint32(0), g.uint32(0), g.uint32(0), g.uint32(0)
                    begin = g.int32(at + piece * 8)
                    if first + staged_row < page and begin < rank:
                        a, b, c, d = g.load_u32x4(rows, (g.int64(first + staged_row) * rank + begin) // 2)
                    g.sync_warp()  # all have read what was staged before
                    stage(staged, staged_row, piece, a, b, c, d)
                    g.sync_warp()
                    for r in range(g.int32(0), min(g.int32(tile), g.int32(rank - at)), g.int32(step)):
                        lows, highs = g.local_u32(step), g.local_u32(step)
                        for j in range(step):
                            word = g.int64(at + r + j) * row_words + own
                            lows[j], highs[j] = columns[word], columns[word + half // 2]
                        for j in range(step):
                            x = g.local_f32(n_keys)
                            for i in range(0, n_keys, 4):
                                x[i], x[i + 1], x[i + 2], x[i + 3] = g.load_f32x4(
                                    staged, (r + j) * n_keys + i
                                )
                            low_a, low_b = g.low_bf16(lows[j]), g.high_bf16(lows[j])
                            high_a, high_b = g.low_bf16(highs[j]), g.high_bf16(highs[j])
                            for i in range(n_keys):
                                sums[4 * i] = g.fma(x[i], low_a, sums[4 * i])
                                sums[4 * i + 1] = g.fma(x[i], low_b, sums[4 * i + 1])
                                sums[4 * i + 2] = g.fma(x[i], high_a, sums[4 * i + 2])
                                sums[4 * i + 3] = g.fma(x[i], high_b, sums[4 * i + 3])
                for i in range(n_keys):
                    if quad < quads and first + i < page:
                        turned = g.shifted(table, (position + first + i) * head_dim + 2 * quad)
                        cos_a, cos_b, sin_a, sin_b = turned[0], turned[1], turned[half], turned[half + 1]
                        low_a, low_b = sums[4 * i], sums[4 * i + 1]
                        high_a, high_b = sums[4 * i + 2], sums[4 * i + 3]
                        to = target + g.int64(first + i) * head_dim + 2 * quad
                        store(cache, to, low_a * cos_a - high_a * sin_a, low_b * cos_b - high_b * sin_b)
                        store(
                            cache, to + half, high_a * cos_a + low_a * sin_a, high_b * cos_b + low_b * sin_b
                        )

    memory = "u32*" if halves else "f32*"
    return CudaKernel(
        kernel,
        f"{memory} i64 i64 u32* i64 u32* i64 i64 i32 f32* i32* i64 i64 i32* i64 i64 i32* i32 i64* i64* i64*"
        " i32 i32",
        threads,
        opcodes=("LDG.E.128", "LDS.128"),
        work=Work("key and number of its rank", 0, 2 * head_dim),
    )
