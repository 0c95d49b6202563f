"""CUDA kernels that turn rows into HIGGS codes and back (see higgs_encode.py and higgs_layout.py).

Layouts of codes: "bytes" and "sixes" are host rows, of one byte or 6 bits a code; "blocks" are selector
blocks.
"""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel, Work
from .higgs_encode import SCALE_RULES
from .higgs_layout import BLOCK_TOKENS, LARGEST_SCALE, SELECTORS, TILE_TOKENS
from .rotate import make_rotate_registers, rotation_factors, rotation_lanes

LAYOUTS = ("bytes", "sixes", "blocks")
TOGETHER = {2: 4, 4: 2, 8: 2}  # sub-vectors that a thread searches at once, by their dimension


def rows_of_a_block(head_dim: int) -> int:
    """Rows that a block of threads of higgs_encode_cuda encodes: a multiple of what 128 threads rotate."""
    return max(128 // rotation_lanes(head_dim), 16)


def _check(dim: int, n_points: int, layout: str, head_dim: int) -> None:
    """Raises: ValueError."""
    if dim not in TOGETHER or n_points not in (64, 256):
        raise ValueError(
            f"a grid of {n_points} points of dimension {dim} has no CUDA kernel: use 64 or 256 points of"
            " dimension 2, 4 or 8"
        )
    if layout not in LAYOUTS:
        raise ValueError(f"no layout {layout!r} of codes: choose one of {', '.join(LAYOUTS)}")
    if layout == "sixes" and n_points > 64:
        raise ValueError(f"codes of {n_points} points take more than 6 bits: use the layout bytes")
    if head_dim % (16 * dim if layout == "sixes" else 4 * dim) and layout != "blocks":
        raise ValueError(f"rows of {head_dim // dim} codes are no whole words: use another grid")


def make_search(g: Any, dim: int, n_points: int, points_stride: int, n_together: int) -> Any:
    """An inline search(y, points, codes, scores) of n_together sub-vectors.

    A code is the point with the largest y.g - |g|^2 / 2, the lowest of equal ones; that value is the score.
    Since -g is a point too, the larger of the two is |y.g| - |g|^2 / 2; a point equal to one mirrored before
    comes before that, too. `points` [n / 2][points_stride]: a point of the first half, then |point|^2 / 2.
    """
    half, lowest = n_points // 2, float("-inf")

    @g.inline
    def search(y, points, codes, scores):  # type: ignore[no-untyped-def]
        for v in range(n_together):
            codes[v], scores[v] = 0, g.float32(lowest)
        for i in range(g.int32(0), g.int32(half), g.int32(1)):
            point = g.local_f32(points_stride)
            for j in range(0, points_stride, 4):
                a, b, c, d = g.load_f32x4(points, i * points_stride + j)
                point[j], point[j + 1], point[j + 2], point[j + 3] = a, b, c, d
            for v in range(n_together):
                dot = y[v * dim] * point[0]
                for j in range(1, dim):
                    dot = g.fma(y[v * dim + j], point[j], dot)
                score = g.absolute(dot) - point[dim]
                equal = score == scores[v] and codes[v] >= half and dot >= g.float32(0)
                if score > scores[v] or equal:
                    scores[v] = score
                    codes[v] = i + half if dot < g.float32(0) else i

    return search


def higgs_encode_cuda(
    g: Any,
    dim: int,
    n_points: int,
    layout: str,
    head_dim: int,
    scale_rule: str,
    centred: bool,
    signs: bool,
) -> CudaKernel:
    """Codes and scales of rows firsts[b] .. lasts[b] - 1 of the slots of a batch, of every KV head; the row
    firsts[b] lies at sources[b]. Rows of "blocks" are tokens; others of their block stay as they are.

    Grid: x, blocks of rows_of_a_block(head_dim) rows; y, batch rows times KV heads.
    Shapes: codes uint32, strides in words, rows (or blocks) of row_words; scales uint16 (float16),
    strides of 16 bits, a row's scale scale_step after the one before (for blocks: the blocks' memory again);
    x float32 with rows of head_dim, strides multiples of 4; means float32 [slots][means_slot_stride] of
    [Hk, D]; search: GridTables, float32 [n / 2][d + 1].
    Raises: ValueError for a grid, layout, scale rule or size without a kernel.
    """
    _check(dim, n_points, layout, head_dim)
    if scale_rule not in SCALE_RULES:
        raise ValueError(f"no scale rule {scale_rule!r}: choose one of {', '.join(SCALE_RULES)}")
    m, power = rotation_factors(head_dim)
    lanes, threads, n_rows_here = rotation_lanes(head_dim), 128, rows_of_a_block(head_dim)
    n, n_held, n_steps, at_once = power // lanes, head_dim // lanes, lanes.bit_length() - 1, threads // lanes
    per_row, n_together, n_y = head_dim // dim, TOGETHER[dim], n_rows_here * head_dim
    n_units, half, stride = n_rows_here * per_row, n_points // 2, -(-(dim + 1) // 4) * 4
    n_point_numbers, n_own = half * stride, n_together * dim
    unbiased, corrected, largest = scale_rule == "unbiased", scale_rule != "norm", LARGEST_SCALE
    as_blocks, as_sixes, part, width = layout == "blocks", layout == "sixes", 1 / head_dim, float(head_dim)
    words_of_row = {"blocks": -(-per_row // 4), "bytes": per_row // 4, "sixes": per_row // 16 * 3}[layout]
    selector = next((s for s in SELECTORS.values() if s.dim == dim), SELECTORS["2bit"])
    tile_words, scales_at = selector.tile_bytes(head_dim) // 4, selector.scales(head_dim) // 2
    block_tokens, tile_tokens = BLOCK_TOKENS, TILE_TOKENS
    rotate = make_rotate_registers(g, head_dim, False, signs)
    search = make_search(g, dim, n_points, stride, n_together)

    @g.inline
    def word_of(codes, row, word):  # type: ignore[no-untyped-def]
        """A word of the row's codes, packed."""
        first, made = g.int32(row * per_row), g.uint32(0)
        if as_sixes:
            first, bits = g.int32(first + word // 3 * 16), g.int32(word % 3 * 32)
            for k in range(16):
                code, at = g.uint32(codes[first + k]), g.int32(6 * k - bits)
                if at >= 0 and at < 32:
                    made = g.uint32(made | g.uint32(code << at))
                elif at > -6 and at < 0:
                    made = g.uint32(made | code >> g.uint32(-at))
        else:
            for k in range(4):
                if g.int32(word * 4 + k) < per_row:
                    made = g.uint32(made | g.uint32(codes[first + word * 4 + k] << 8 * k))
        return made

    def kernel(  # type: ignore[no-untyped-def]
        codes,
        codes_slot_stride,
        codes_head_stride,
        row_words,
        scales,
        scales_slot_stride,
        scales_head_stride,
        scale_step,
        x,
        x_slot_stride,
        x_head_stride,
        means,
        means_slot_stride,
        search_table,
        slots,
        n_heads,
        firsts,
        lasts,
        sources,
        n_rows,
    ):
        segment, thread = g.block_y(), g.thread()
        batch_row = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if batch_row >= n_rows[0]:
            return
        start = g.int64(firsts[batch_row]) + g.block() * n_rows_here
        n_valid = g.int32(min(lasts[batch_row] - start, n_rows_here))
        if n_valid <= 0:
            return
        slot, head = slots[batch_row], segment - batch_row * n_heads
        place = sources[batch_row] + g.block() * n_rows_here
        x = g.shifted(x, slot * x_slot_stride + head * x_head_stride + place * head_dim)
        points, y = g.shared_f32(n_point_numbers), g.shared_f32(n_y)
        found, along, halves = g.shared_i32(n_units), g.shared_f32(n_units), g.shared_f32(n_units)
        sizes = g.shared_f32(n_rows_here)
        for i in range(thread, g.int32(n_point_numbers), g.int32(threads)):
            number = g.float32(0)
            if i % stride <= dim:
                number = search_table[i // stride * (dim + 1) + i % stride]
            points[i] = number
        lane = g.int32(thread % lanes)
        for first in range(g.int32(thread // lanes), g.int32(n_rows_here), g.int32(at_once)):
            held = g.local_f32(n_held)
            for j in range(m):
                for i in range(0, n, 4):
                    a, b, c, d = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
                    if first < n_valid:
                        at = g.int32(j * power + i * lanes + lane * 4)
                        a, b, c, d = g.load_f32x4(x, g.int64(first) * head_dim + at)
                        if centred:
                            e, f, h, k = g.load_constant_f32x4(
                                means, slot * means_slot_stride + head * head_dim + at
                            )
                            a, b, c, d = a - e, b - f, c - h, d - k
                    at = j * n + i
                    held[at], held[at + 1], held[at + 2], held[at + 3] = a, b, c, d
            rotate(held, lane)
            squares, inverse = g.float32(0), g.float32(0)
            for i in range(n_held):
                squares = g.fma(held[i], held[i], squares)
            for k in range(n_steps):
                squares += g.shuffle_xor(squares, 1 << k)
            size = g.sqrt(squares * g.float32(part))
            if size > g.float32(0):
                inverse = g.divide(g.float32(1), size)
            for j in range(m):
                for i in range(0, n, 4):
                    at, to = j * n + i, first * head_dim + j * power + i * lanes + lane * 4
                    a, b, c, d = held[at], held[at + 1], held[at + 2], held[at + 3]
                    g.store_f32x4(y, to, a * inverse, b * inverse, c * inverse, d * inverse)
            if lane == 0:
                sizes[first] = size
        g.sync_threads()
        n_used = g.int32(n_valid * per_row)
        for unit in range(thread, n_used, g.int32(threads * n_together)):
            own, scores, own_codes = g.local_f32(n_own), g.local_f32(n_together), g.local_i32(n_together)
            for v in range(n_together):
                for j in range(dim):
                    own[v * dim + j] = y[min(unit + v * threads, n_used - 1) * dim + j]
            search(own, points, own_codes, scores)
            for v in range(n_together):
                at = g.int32(unit + v * threads)
                if at < n_used:
                    half_square = points[own_codes[v] % half * stride + dim]
                    found[at], halves[at] = own_codes[v], half_square
                    along[at] = scores[v] + half_square
        g.sync_threads()
        codes = g.shifted(codes, slot * codes_slot_stride + head * codes_head_stride)
        scales = g.shifted(scales, slot * scales_slot_stride + head * scales_head_stride)
        for row in range(g.int32(thread // 32), n_valid, g.int32(threads // 32)):
            size, token = sizes[row], start + row
            if corrected:
                total, squares = g.float32(0), g.float32(0)
                for i in range(thread % 32, g.int32(per_row), g.int32(32)):
                    total += along[row * per_row + i]
                    squares += halves[row * per_row + i]
                total, squares = g.warp_sum(total), g.warp_sum(squares)
                if total > g.float32(0):
                    if unbiased:
                        size *= g.divide(g.float32(width), total)
                    else:
                        size *= g.divide(total, squares + squares)
            if thread % 32 == 0:
                at = token * scale_step
                if as_blocks:
                    at = token // block_tokens * (row_words * 2) + scales_at + token % block_tokens
                scales[at] = g.f16_from_f32(min(size, g.float32(largest)))
        for i in range(thread, g.int32(n_valid * words_of_row), g.int32(threads)):
            if as_blocks:  # neighbouring threads write neighbouring tokens
                word = g.int32(g.uint32(i) // g.uint32(n_valid))
                row = g.int32(i - word * n_valid)
                token = start + row
                at = token // block_tokens * row_words + word * tile_tokens + token % tile_tokens
                at += token % block_tokens // tile_tokens * tile_words
            else:
                row, word = g.int32(i // words_of_row), g.int32(i % words_of_row)
                at = (start + row) * row_words + word
            codes[at] = word_of(found, row, word)

    return CudaKernel(
        kernel,
        "u32* i64 i64 i32 u16* i64 i64 i32 f32* i64 i64 f32* i64 f32* i64* i32 i64* i64* i64* i64*",
        threads,
        opcodes=("LDG.E.128", "LDS.128"),
        work=Work("row", 4 * head_dim + per_row + 2, per_row * half * (dim + 3)),
    )
