"""A CUDA kernel that decodes chosen tokens from rows of codes that span all KV heads (YAKV as its paper has
it): fetched, rotated back as a whole, of which a head takes its part.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work
from .higgs_code import HiggsCode
from .rope_table import RopeTable
from .rotate import make_rotate_registers, rotation_factors, rotation_lanes

MOST_WIDTH = 2048  # numbers of a row, of which a lane has 64 in registers


def paper_rows_ref(
    code: HiggsCode,
    codes: np.ndarray,
    scales: np.ndarray,
    rope: RopeTable,
    positions: np.ndarray,
    columns: slice,
) -> tuple[np.ndarray, np.ndarray]:
    """K after RoPE and V of one head, whose numbers are these columns, of the tokens at some positions.

    Shapes: codes uint8 [n, 2, n_codes] and scales float16 [n, 2], of K before RoPE and of V -> float32
    [n, D].
    """
    k, v = (code.decode(codes[:, i], scales[:, i], columns) for i in range(2))
    return rope.rotate(k, positions), v


def check_width(width: int) -> None:
    """Of a row of codes, rotated. Raises: ValueError for what has no CUDA kernel."""
    if width > MOST_WIDTH:
        raise ValueError(
            f"on a GPU, yakv-paper decodes rows of up to {MOST_WIDTH} numbers, those of all KV heads together"
            f", and the model's have {width}: take another KV method, or the CPU"
        )


def paper_rows_cuda(g: Any, width: int, head_dim: int, kind: str) -> CudaKernel:
    """paper_rows_ref of every head's chosen tokens, as numbers of `kind`, behind its resident rows; from
    codes on the device or in pinned host memory. As many lanes as rotation_lanes(width) share a token.

    Grid: any number of blocks of 8 warps.
    Shapes: out_k and out_v [B * Hk][out_stride] words of rows of head_dim numbers, halves in pairs in uint32;
    codes uint32 [slots][n_tokens] of `width` bytes, of K and of V, scales uint32 [slots][n_tokens], float16
    of K and of V; points uint32 [256], float16 in pairs; table float32 [n_tokens][D] of RopeTable; residents
    int64 [B], counts int64 [B * Hk], ids int32 [B * Hk][ids_stride], from position n_sinks on.
    Raises: ValueError for a width or a kind without a kernel.
    """
    check_width(width)
    if kind not in ("f32", "f16", "bf16"):
        raise ValueError(f"no CUDA kernel decodes {kind} rows: use f32, f16 or bf16")
    m, power = rotation_factors(width)
    lanes, threads = rotation_lanes(width), 256
    n, n_held, warps, items = power // lanes, width // lanes, threads // 32, 32 // lanes
    n_pieces, token_words, n_points = width // 16, width // 4, 256
    n_loads, n_staged, n_made = -(-n_pieces // lanes), warps * items * token_words, warps * items * head_dim
    halves, half_dim = kind != "f32", head_dim // 2
    row_words = half_dim if halves else head_dim
    half_words, n_writes = row_words // 2, -(-row_words // (2 * lanes))
    pack = g.pack_f16 if kind == "f16" else g.pack_bf16
    rotate = make_rotate_registers(g, width, True, False)

    @g.inline
    def turn(made, table, i, turned):  # type: ignore[no-untyped-def]
        """Numbers i and i + D / 2 of a head's row, after RoPE where it is turned."""
        low, high = made[i], made[i + half_dim]
        if turned:
            cos, sin = table[i], table[i + half_dim]
            return low * cos - high * sin, high * cos + low * sin
        return low, high

    @g.inline
    def write(out, made, table, turned, lane):  # type: ignore[no-untyped-def]
        for step in range(n_writes):
            i = g.int32(step * lanes + lane)
            if i < half_words:
                if halves:
                    a, b = turn(made, table, 2 * i, turned)
                    c, d = turn(made, table, 2 * i + 1, turned)
                    out[i], out[i + half_words] = pack(a, c), pack(b, d)
                else:
                    out[i], out[i + half_words] = turn(made, table, i, turned)

    def kernel(  # type: ignore[no-untyped-def]
        out_k, out_v, out_stride, codes, scales, n_tokens, points, table, slots, n_rows, n_heads, residents,
        counts, ids, ids_stride, n_sinks,
    ):  # fmt: skip
        thread = g.thread()
        lane, item, local_warp = g.int32(thread % lanes), g.int32(thread % 32 // lanes), thread // 32
        grid, all_staged, all_made = g.shared_u32(n_points), g.shared_u32(n_staged), g.shared_f32(n_made)
        for i in range(thread, n_points, g.int32(threads)):
            grid[i] = points[i]
        g.sync_threads()
        staged = g.shifted(all_staged, (local_warp * items + item) * token_words)
        made = g.shifted(all_made, (local_warp * items + item) * head_dim)
        next_chunk, n_warps = g.int32(g.block() * warps + local_warp), g.int32(g.n_blocks() * warps)
        for segment in range(g.int32(0), g.int32(n_rows[0] * n_heads), g.int32(1)):
            row = g.int32(g.uint32(segment) // g.uint32(n_heads))
            first_column = g.int32((segment - row * n_heads) * head_dim)
            count = g.int32(counts[segment])
            n_chunks = g.int32((count + items - 1) // items)
            own_ids = g.shifted(ids, g.int64(segment) * ids_stride)
            while next_chunk < n_chunks:
                unlimited = g.int32(next_chunk * items + item)
                position = g.int64(n_sinks) + own_ids[min(unlimited, count - 1)]
                token = slots[row] * n_tokens + position
                source = g.shifted(codes, token * token_words)
                for i in range(n_loads):
                    piece = g.int32(i * lanes + lane)
                    if piece < n_pieces:
                        a, b, c, d = g.load_u32x4(source, piece * 4)
                        g.store_u32x4(staged, piece * 4, a, b, c, d)
                pair = g.uint32(scales[token])
                angles = g.shifted(table, position * head_dim)
                to = g.int64(segment) * out_stride + (residents[row] + unlimited) * row_words
                g.sync_warp()
                for part in range(2):
                    held = g.local_f32(n_held)
                    for j in range(m):
                        for i in range(0, n, 4):
                            origin, at = (j * power + i * lanes) // 8, j * n + i
                            two = g.uint32(staged[part * (token_words // 2) + origin + lane // 2])
                            two = g.uint32(two >> g.uint32(lane % 2 * 16))
                            a, b = g.uint32(grid[two & 255]), g.uint32(grid[two >> 8 & 255])
                            held[at], held[at + 1] = g.low_f16(a), g.high_f16(a)
                            held[at + 2], held[at + 3] = g.low_f16(b), g.high_f16(b)
                    rotate(held, lane)
                    scale = g.low_f16(pair) if part == 0 else g.high_f16(pair)
                    for j in range(m):
                        for i in range(0, n, 4):
                            column, at = g.int32(j * power + i * lanes + lane * 4 - first_column), j * n + i
                            if column >= 0 and column < head_dim:
                                for k in range(4):
                                    made[column + k] = held[at + k] * scale
                    g.sync_warp()
                    if unlimited < count:
                        if part == 0:
                            write(g.shifted(out_k, to), made, angles, True, lane)
                        else:
                            write(g.shifted(out_v, to), made, angles, False, lane)
                    g.sync_warp()
                next_chunk = g.int32(next_chunk + n_warps)
            next_chunk = g.int32(next_chunk - n_chunks)

    memory = "u32*" if halves else "f32*"
    return CudaKernel(
        kernel,
        f"{memory} {memory} i64 u32* u32* i64 u32* f32* i64* i64* i32 i64* i64* i32* i64 i32",
        threads,
        opcodes=("LDG.E.128", "LDS"),
        work=Work("token of a head", width + 4 + 4 * row_words * 2, 2 * width * (power.bit_length() + 2 * m)),
    )
