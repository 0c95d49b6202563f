"""Exact rows become blocks of codes in YAKV's pools, and codes become rows again."""

from __future__ import annotations

from typing import Any

import numpy as np

from .higgs_encode import encode_scratch_bytes
from .higgs_layout import BLOCK_TOKENS, ROW_FORMATS, SELECTORS, row_bytes
from .yakv_layout import YakvShape, indexed_end, make_pool_addresses, pool_word, ring_place


def store_scratch_bytes(head_dim: int) -> int:
    """Scratch of a thread: the keys and values of a block as float32, and what the encoders take."""
    return 2 * BLOCK_TOKENS * head_dim * 4 + -(-encode_scratch_bytes(head_dim) // 64) * 64


def make_read_rows(head_dim: int, kind: str) -> Any:
    """An inline read_rows(k, v, k_cache, v_cache, place, n): n exact rows as float32 [n][D] each."""
    from ..cpu import vector_ops as v_
    from ..cpu.simd import ELEMENT_BYTES

    element, get, load = ELEMENT_BYTES[kind], v_.GET[kind], v_.LOAD[kind]

    @v_.inline
    def read_rows(k: int, v: int, k_cache: int, v_cache: int, place: int, n: int) -> None:
        for i in range(n):
            tile = k_cache + ((place + i) // 16 * head_dim * 16 + (place + i) % 16) * element
            for d in range(head_dim):
                v_.put_f32(k + (i * head_dim + d) * 4, get(tile + d * 16 * element))
            source = v_cache + (place + i) * head_dim * element
            for d in range(0, head_dim, 16):
                v_.store_f32(v + (i * head_dim + d) * 4, load(source + d * element))

    return read_rows


def make_encode_block(shape: YakvShape) -> Any:
    """An inline encode_block(pools, slot, head, block, k_cache, v_cache, place, scratch): the 64 exact
    rows from `place` on become a block: selector, host rows, mean value.
    """
    from ..cpu import vector_ops as v
    from .higgs_residual import make_encode_residuals
    from .higgs_rows import make_encode_rows
    from .higgs_selector import make_clear_block, make_encode_selector

    head_dim, centred, residual = shape.head_dim, shape.centred, ROW_FORMATS[shape.k_format].residual
    read_rows = make_read_rows(head_dim, shape.kind)
    encode_k = make_encode_rows(shape.k_format, head_dim)
    encode_residuals = make_encode_residuals(shape.selector, head_dim)
    encode_v = make_encode_rows(shape.v_format, head_dim)
    encode_selector = make_encode_selector(shape.selector, head_dim, "norm")
    clear_block = make_clear_block(shape.selector, head_dim)
    _, _, selector_of, rows_of, scales_of, values_of, mean_of = make_pool_addresses(shape)
    block_bytes = SELECTORS[shape.selector].block_bytes(head_dim)
    stride = row_bytes(head_dim, shape.k_format, shape.v_format)
    v_codes, rotated = ROW_FORMATS[shape.k_format].n_bytes(head_dim), ROW_FORMATS[shape.k_format].rotated
    selector_tables, mean_tables = pool_word("selector_tables"), pool_word("mean_tables")
    k_tables, v_tables = pool_word("k_tables"), pool_word("v_tables")
    row_floats = head_dim * 4
    store_half = v.STORE["f16"]

    @v.inline
    def encode_block(
        pools: int, slot: int, head: int, block: int, k_cache: int, v_cache: int, place: int, scratch: int
    ) -> None:
        k, values = scratch, scratch + 64 * row_floats
        encoder = values + 64 * row_floats
        read_rows(k, values, k_cache, v_cache, place, 64)
        mean = mean_of(pools, slot, head) if centred else 0
        selector = selector_of(pools, slot, head) + block * block_bytes
        clear_block(selector)
        tables, means = v.get_i64(pools + selector_tables), v.get_i64(pools + mean_tables)
        encode_selector(k, row_floats, mean, 0, 64, selector, tables, means, encoder)
        rows = rows_of(pools, slot, head) + block * 64 * stride
        scales = scales_of(pools, slot, head) + block * 64 * 4
        k_mean, points = mean if rotated else 0, v.get_i64(pools + k_tables)
        if residual:
            encode_residuals(
                k, row_floats, mean, selector, rows, stride, scales, 4, points, tables, means, encoder
            )
        else:
            encode_k(k, row_floats, k_mean, 64, rows, stride, scales, 4, points, encoder)
        v_rows, points = rows + v_codes, v.get_i64(pools + v_tables)
        encode_v(values, row_floats, 0, 64, v_rows, stride, scales + 2, 4, points, encoder)
        target = values_of(pools, slot, head) + block * head_dim * 2
        for d in range(0, head_dim, 16):
            total = v.load_f32(values + d * 4)
            for i in range(1, 64):
                total = v.add(total, v.load_f32(values + i * row_floats + d * 4))
            store_half(target + d * 2, v.mul(total, v.splat(np.float32(1 / 64))))

    return encode_block


def make_mean_key(shape: YakvShape) -> Any:
    """An inline mean_key(mean, k_cache, place, n): the mean of n keys from `place`, a multiple of 16, on."""
    from ..cpu import vector_ops as v
    from ..cpu.simd import ELEMENT_BYTES

    head_dim, element, get = shape.head_dim, ELEMENT_BYTES[shape.kind], v.GET[shape.kind]

    @v.inline
    def mean_key(mean: int, k_cache: int, place: int, n: int) -> None:
        for d in range(head_dim):
            total = np.float32(0)
            for i in range(n):
                at = place + i
                total += get(k_cache + ((at // 16 * head_dim + d) * 16 + at % 16) * element)
            v.put_f32(mean + d * 4, total / np.float32(n))

    return mean_key


def yakv_store_cpu(*parameters: Any) -> Any:
    """Takes over a prompt's exact rows: the mean key of every head if it has none yet, blocks that left
    the window, which a cache must not hold from before, and the ring. Threads share the heads first, then
    blocks and rings.

    Args: pools, k_cache, v_cache, head_stride (of the prompt's rows; position p lies at place p), slot*,
    n_held*, n_tokens* (held and new), scratch, scratch_stride, phase (0: mean keys and the cache, 1: blocks
    and rings).
    """
    from ..cpu import vector_ops as v
    from .kv_append import make_append
    from .yakv_fetch import make_forget

    shape, forget = YakvShape(*parameters), make_forget()
    n_sinks, window, sink_places, ring_len = shape.n_sinks, shape.window, shape.sink_places, shape.window + 64
    encode_block, mean_key = make_encode_block(shape), make_mean_key(shape)
    read_rows, append = make_read_rows(shape.head_dim, shape.kind), make_append(shape.head_dim, shape.kind)
    ring_k, ring_v, _, _, _, _, mean_of = make_pool_addresses(shape)
    end_of, place_of, heads_at = v.inline(indexed_end), v.inline(ring_place), pool_word("n_kv_heads")
    row_floats = shape.head_dim * 4

    @v.inline
    def fill_ring(
        pools: int, slot: int, head: int, k: int, values: int, first: int, last: int, scratch: int
    ) -> None:
        row = scratch + row_floats
        for position in range(first, last):
            read_rows(scratch, row, k, values, position, 1)
            place = place_of(position, n_sinks, sink_places, ring_len)
            append(ring_k(pools, slot, head), ring_v(pools, slot, head), scratch, row, place)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        pools, k_cache, v_cache = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        head_stride, slot = v.get_i64(args + 24), v.get_i64(v.get_i64(args + 32))
        n_held, n_tokens = v.get_i64(v.get_i64(args + 40)), v.get_i64(v.get_i64(args + 48))
        scratch = v.get_i64(args + 56) + thread * v.get_i64(args + 64)
        n_heads = v.get_i64(pools + heads_at)
        begin, end = end_of(n_held, n_sinks, window), end_of(n_tokens, n_sinks, window)
        if v.get_i64(args + 72) == 0:
            first, last = v.share(n_heads, thread, n_threads, 0)
            for head in range(first, last):
                forget(pools, slot, head, begin - n_sinks, end - n_sinks)
                if begin == n_sinks and end > n_sinks:
                    # the sinks lie far from the other keys
                    mean_key(
                        mean_of(pools, slot, head), k_cache + head * head_stride, n_sinks, n_tokens - n_sinks
                    )
            return
        n_blocks = (end - begin) // 64
        per_head = n_blocks + 1
        first, last = v.share(n_heads * per_head, thread, n_threads, 0)
        for unit in range(first, last):
            head, block = unit // per_head, unit % per_head
            k, values = k_cache + head * head_stride, v_cache + head * head_stride
            if block < n_blocks:
                place = begin + block * 64
                encode_block(pools, slot, head, (place - n_sinks) // 64, k, values, place, scratch)
            else:
                fill_ring(pools, slot, head, k, values, min(n_held, n_sinks), min(n_sinks, n_tokens), scratch)
                fill_ring(pools, slot, head, k, values, max(end, n_sinks), n_tokens, scratch)

    return kernel


def yakv_recall_cpu(*parameters: Any) -> Any:
    """Writes positions first .. last - 1 of a slot that holds n_held tokens as rows of `kind`: exact ones
    from the ring, indexed ones from their codes.

    Args: pools, k_cache, v_cache, head_stride (of the target), slot*, n_held*, first*, last*, to_ring,
    scratch, scratch_stride. to_ring: the target is the ring of the slot itself (k_cache, v_cache and
    head_stride unused), else position p goes to place p. Threads share heads and positions.
    """
    from ..cpu import vector_ops as v
    from .higgs_residual import make_estimate
    from .higgs_rows import make_decode_row
    from .kv_append import make_append
    from .rotate import make_rotate

    shape = YakvShape(*parameters)
    head_dim, n_sinks, window, sink_places = shape.head_dim, shape.n_sinks, shape.window, shape.sink_places
    ring_len, row_floats = window + 64, head_dim * 4
    read_rows, append = make_read_rows(head_dim, shape.kind), make_append(head_dim, shape.kind)
    decode_k, decode_v = make_decode_row(shape.k_format, head_dim), make_decode_row(shape.v_format, head_dim)
    ring_k, ring_v, selector_of, rows_of, scales_of, _, mean_of = make_pool_addresses(shape)
    end_of, place_of, heads_at = v.inline(indexed_end), v.inline(ring_place), pool_word("n_kv_heads")
    stride = row_bytes(head_dim, shape.k_format, shape.v_format)
    k_rotated, v_rotated = (ROW_FORMATS[name].rotated for name in (shape.k_format, shape.v_format))
    v_codes = ROW_FORMATS[shape.k_format].n_bytes(head_dim)
    add_mean, residual = shape.centred and k_rotated, ROW_FORMATS[shape.k_format].residual
    k_tables, v_tables = pool_word("k_tables"), pool_word("v_tables")
    selector_tables, mean_tables = pool_word("selector_tables"), pool_word("mean_tables")
    block_bytes, estimate = (
        SELECTORS[shape.selector].block_bytes(head_dim),
        make_estimate(shape.selector, head_dim),
    )
    unrotate = make_rotate(head_dim, inverse=True)

    @v.inline
    def add_row(row: int, other: int) -> None:
        for d in range(0, row_floats, 64):
            v.store_f32(row + d, v.add(v.load_f32(row + d), v.load_f32(other + d)))

    @v.inline
    def decode(pools: int, slot: int, head: int, index: int, k: int, values: int) -> None:
        codes = rows_of(pools, slot, head) + index * stride
        scale = scales_of(pools, slot, head) + index * 4
        decode_k(k, codes, v.get_f16(scale), v.get_i64(pools + k_tables))
        if residual:
            block = selector_of(pools, slot, head) + index // 64 * block_bytes
            tables, means = v.get_i64(pools + selector_tables), v.get_i64(pools + mean_tables)
            estimate(values, block, index % 64, tables, means)
            add_row(k, values)
        decode_v(values, codes + v_codes, v.get_f16(scale + 2), v.get_i64(pools + v_tables))
        if k_rotated:
            unrotate(k, k)
        if v_rotated:
            unrotate(values, values)
        if add_mean:
            add_row(k, mean_of(pools, slot, head))

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        pools, k_cache, v_cache = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        head_stride, slot = v.get_i64(args + 24), v.get_i64(v.get_i64(args + 32))
        n_held = v.get_i64(v.get_i64(args + 40))
        first, last = v.get_i64(v.get_i64(args + 48)), v.get_i64(v.get_i64(args + 56))
        to_ring = v.get_i64(args + 64)
        k = v.get_i64(args + 72) + thread * v.get_i64(args + 80)
        values = k + row_floats
        end, n_heads, n = end_of(n_held, n_sinks, window), v.get_i64(pools + heads_at), last - first
        # whole vectors of positions per thread: keys lie in tiles
        begin, stop = v.share((n + 15) // 16 * n_heads, thread, n_threads, 0)
        for unit in range(begin, stop):
            head, start = unit % n_heads, first + unit // n_heads * 16
            own_k, own_v = ring_k(pools, slot, head), ring_v(pools, slot, head)
            target_k = own_k if to_ring else k_cache + head * head_stride
            target_v = own_v if to_ring else v_cache + head * head_stride
            for position in range(start, min(start + 16, last)):
                place = place_of(position, n_sinks, sink_places, ring_len)
                if n_sinks <= position < end:
                    decode(pools, slot, head, position - n_sinks, k, values)
                else:
                    read_rows(k, values, own_k, own_v, place, 1)
                append(target_k, target_v, k, values, place if to_ring else position)

    return kernel
