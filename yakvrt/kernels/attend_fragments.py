"""Pieces of the CUDA kernels that attend to a history with the few queries of one token: a warp takes 16
positions at a time, on tensor cores, rows of keys and values going from memory straight into fragments.

Keys and values are the tall operand, up to 8 query heads the narrow one; the heads of a larger group are
shared by neighbouring blocks, of which one reads memory and the others find the rows in the L2 cache. Queries
and weights are split into a number of 16 bits and the rest of the rounding, which take a product each: they
count with twice the digits. Contractions do not ask for an order: a lane takes neighbouring numbers of a row,
up to 16 bytes at once, and the queries are laid out to fit.

Lane l, with r = l / 4 and c = l % 4, holds keys of positions r and r + 8, values of positions 2c, 2c + 1,
2c + 8 and 2c + 9, scores and sums of heads 2c and 2c + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TILE = 16  # positions
LEAST = -1e30  # a score that weighs nothing
HEAD_DIMS = (64, 128, 192, 256)
BLOCK_HEADS = 8


def check_shape(head_dim: int, kind: str) -> None:
    """Raises: ValueError."""
    if head_dim not in HEAD_DIMS:
        held = ", ".join(str(size) for size in HEAD_DIMS)
        raise ValueError(f"a head dimension of {head_dim} has no CUDA attention: it must be one of {held}")
    if kind not in ("bf16", "f16"):
        raise ValueError(f"KV rows of {kind} have no CUDA attention: use bf16 or f16")


def number_ops(g: Any, kind: str) -> tuple[Any, Any, Any, Any]:
    """(pack, low, high, mma) of a 16-bit format."""
    if kind == "f16":
        return g.pack_f16, g.low_f16, g.high_f16, g.mma_m16n8k16_f16
    return g.pack_bf16, g.low_bf16, g.high_bf16, g.mma_m16n8k16_bf16


def head_blocks(group: int) -> int:
    """Blocks that share the heads of a group. Plain Python for the host, compiled into the kernels."""
    return (group + 7) // 8


def query_words(head_dim: int) -> int:
    """uint32 words of the queries' fragments in shared memory."""
    return head_dim // 16 * 128


def make_share_heads(g: Any) -> Any:
    """An inline share_heads(block, n_splits, group): the kv head, the split, the first of the group's query
    heads that are this block's, and how many they are. Blocks of one split of one kv head are neighbours.
    """
    blocks_of = g.inline(head_blocks)

    @g.inline
    def share_heads(block, n_splits, group):  # type: ignore[no-untyped-def]
        n_chunks = g.uint32(blocks_of(group))
        n_held = g.int32((g.uint32(group) + n_chunks - g.uint32(1)) // n_chunks)
        item = g.uint32(g.uint32(block) // n_chunks)
        chunk_head = g.int32((g.uint32(block) - item * n_chunks) * n_held)
        head = g.int32(item // g.uint32(n_splits))
        split = g.int32(item - g.uint32(head) * g.uint32(n_splits))
        return head, split, chunk_head, g.int32(min(n_held, group - chunk_head))

    return share_heads


def make_put_queries(
    g: Any, head_dim: int, kind: str, n_warps: int, first_dim: Callable[[Any, Any], Any]
) -> Any:
    """An inline put_queries(fragments, q, n_heads, scale, thread): float32 heads [n_heads][D] -> fragments.

    first_dim(step, c): the first of the four dimensions of lane column c in a step of 16.
    """
    pack, low, high, _ = number_ops(g, kind)
    threads, n_items = n_warps * 32, head_dim * 2

    @g.inline
    def put_queries(fragments, q, n_heads, scale, thread):  # type: ignore[no-untyped-def]
        for item in range(thread, n_items, threads):
            step, r, c = item >> 5, item >> 2 & 7, item & 3
            x0, x1, x2, x3 = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
            if r < n_heads:
                x0, x1, x2, x3 = g.load_f32x4(q, r * head_dim + first_dim(step, c))
            x0, x1, x2, x3 = x0 * scale, x1 * scale, x2 * scale, x3 * scale
            b0, b1 = pack(x0, x1), pack(x2, x3)
            rest0, rest1 = pack(x0 - low(b0), x1 - high(b0)), pack(x2 - low(b1), x3 - high(b1))
            g.store_u32x4(fragments, item * 4, b0, b1, rest0, rest1)

    return put_queries


def make_add_scores(g: Any, kind: str) -> Any:
    """An inline add_scores(scores, fragments, step, lane, a0, a1, a2, a3) of 16 dimensions: words of keys of
    positions r (a0, a2) and r + 8. `scores`: those of position r, then of r + 8, of both heads.
    """
    _, _, _, mma = number_ops(g, kind)

    @g.inline
    def add_scores(s, fragments, step, lane, a0, a1, a2, a3):  # type: ignore[no-untyped-def]
        b0, b1, rest0, rest1 = g.load_u32x4(fragments, (step * 32 + lane) * 4)
        s[0], s[1], s[2], s[3] = mma(a0, a1, a2, a3, b0, b1, s[0], s[1], s[2], s[3])
        s[0], s[1], s[2], s[3] = mma(a0, a1, a2, a3, rest0, rest1, s[0], s[1], s[2], s[3])

    return add_scores


def make_fold(g: Any, head_dim: int) -> tuple[Any, Any]:
    """Inline functions of a warp's running softmax: sums [D / 4], state [largest, weight] of both heads. A
    lane adds up the weights of its own positions only.

    reset(sums, state)
    fold(scores, left, lane, sums, state): scores become weights, what was summed before is rescaled;
    positions from `left` on weigh nothing, one of the 16 at least must count.
    """
    n_sums, least = head_dim // 4, LEAST

    @g.inline
    def reset(sums, state):  # type: ignore[no-untyped-def]
        for i in range(n_sums):
            sums[i] = g.float32(0)
        for i in (0, 2):
            state[i], state[i + 1] = g.float32(least), g.float32(0)

    @g.inline
    def weigh(s, i, state, at):  # type: ignore[no-untyped-def]
        """Scores of one head become weights; what earlier sums are multiplied by."""
        largest = max(s[i], s[i + 2])
        for step in (4, 8, 16):
            largest = max(largest, g.shuffle_xor(largest, step))
        old = state[at]
        new = max(old, largest)
        shrink = g.exp2(old - new)
        s[i], s[i + 2] = g.exp2(s[i] - new), g.exp2(s[i + 2] - new)
        state[at], state[at + 1] = new, state[at + 1] * shrink + (s[i] + s[i + 2])
        return shrink

    @g.inline
    def fold(s, left, lane, sums, state):  # type: ignore[no-untyped-def]
        if left < 16:
            if lane >> 2 >= left:
                s[0], s[1] = g.float32(least), g.float32(least)
            if (lane >> 2) + 8 >= left:
                s[2], s[3] = g.float32(least), g.float32(least)
        even, odd = weigh(s, 0, state, 0), weigh(s, 1, state, 2)
        if g.ballot(g.uint32(min(even, odd) < g.float32(1))):
            for i in range(0, n_sums, 2):
                sums[i], sums[i + 1] = sums[i] * even, sums[i + 1] * odd

    return reset, fold


def make_add_values(g: Any, kind: str) -> tuple[Any, Any]:
    """(round_weights, add_values).

    round_weights(weights, scores): of fold's scores, [4] words.
    add_values(sums, step, weights, a, b, c, d): adds two neighbouring dimensions; words of values at
    positions 2c, 2c + 1, 2c + 8 and 2c + 9.
    """
    pack, low, high, mma = number_ops(g, kind)

    @g.inline
    def round_weights(w, s):  # type: ignore[no-untyped-def]
        for half in range(2):  # lanes hold two heads of a position and take two positions of a head
            x, y = s[2 * half], s[2 * half + 1]
            rounded = pack(x, y)
            w[half] = g.transpose_matrix(rounded)
            w[2 + half] = g.transpose_matrix(pack(x - low(rounded), y - high(rounded)))

    @g.inline
    def add_values(s, step, w, a, b, c, d):  # type: ignore[no-untyped-def]
        lows, highs = g.uint32(0x5410), g.uint32(0x7632)
        a0, a1 = g.permute_bytes(a, b, lows), g.permute_bytes(a, b, highs)
        a2, a3 = g.permute_bytes(c, d, lows), g.permute_bytes(c, d, highs)
        i = step * 4
        for half in (0, 2):
            s[i], s[i + 1], s[i + 2], s[i + 3] = mma(
                a0, a1, a2, a3, w[half], w[half + 1], s[i], s[i + 1], s[i + 2], s[i + 3]
            )

    return round_weights, add_values


def make_join_warps(g: Any, head_dim: int, n_warps: int, piece: int) -> Any:
    """An inline join_warps(held, pitch, stats, n_heads, sums, state, thread): what the warps of a block have
    summed is added up in shared memory, `held` [n_heads][pitch], relative to the largest score, in order.

    Sums of step i of lane row r belong to the dimensions 2 i % piece and the next of the piece
    2 i // piece * 8 + r. stats [warps][8][2] in shared memory: afterwards stats[0] holds largest and weight.
    """
    n_steps = head_dim // 16

    @g.inline
    def join_warps(held, pitch, stats, n_heads, sums, state, thread):  # type: ignore[no-untyped-def]
        warp, r, c = thread >> 5, thread >> 2 & 7, thread & 3
        for e in range(2):
            for step in (4, 8, 16):
                state[2 * e + 1] += g.shuffle_xor(state[2 * e + 1], step)
            if r == 0:
                at = (warp * 8 + c * 2 + e) * 2
                stats[at], stats[at + 1] = state[2 * e], state[2 * e + 1]
        for i in range(thread, n_heads * pitch, n_warps * 32):
            held[i] = g.float32(0)
        g.sync_threads()
        for e in range(2):
            largest = state[2 * e]
            for other in range(n_warps):
                largest = max(largest, stats[(other * 8 + c * 2 + e) * 2])
            state[2 * e] = g.exp2(state[2 * e] - largest)
        for turn in range(n_warps):
            if turn == warp:
                for e in range(2):
                    if c * 2 + e < n_heads:
                        for step in range(n_steps):
                            at = (c * 2 + e) * pitch + (2 * step // piece * 8 + r) * piece + 2 * step % piece
                            held[at] += sums[step * 4 + e] * state[2 * e]
                            held[at + 1] += sums[step * 4 + 2 + e] * state[2 * e]
            g.sync_threads()
        if thread < n_heads:
            largest = stats[thread * 2]
            for other in range(1, n_warps):
                largest = max(largest, stats[(other * 8 + thread) * 2])
            weight = g.float32(0)
            for other in range(n_warps):
                at = (other * 8 + thread) * 2
                weight += stats[at + 1] * g.exp2(stats[at] - largest)
            stats[thread * 2], stats[thread * 2 + 1] = largest, weight

    return join_warps
