"""A device cache of the host rows that YAKV's steps select: rows stay at stable places, and only rows that
are not resident are copied, each to the place used least recently. Attention reads rows where they lie.

Directory of a head, all zero while it is empty, in int32:

    [node] links: the next and the previous node
    [node] owners: the indexed row that lies there + 1, or 0
    [indexed row] nodes: where it lies, or 0

Node p + 1 stands for place p; the links join them from the least to the most recently used, in a ring that
node 0 closes. A directory is linked when it is first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .yakv_layout import Budget, indexed_end, make_address, pool_word
from .yakv_select import budget_of


def yakv_fetch_ref(cache: dict[int, int], ids: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """One step of one head: the places of the ids, and which of them were copied there.

    `cache` maps rows to places, the least recently used first; a free place p is the row -1 - p. Rows that
    are resident become the most recent in the order of the ids, then those that are not.
    """
    for row in [row for row in ids if row in cache]:
        cache[row] = cache.pop(row)
    missing = [row for row in ids if row not in cache]
    for row in missing:
        cache[row] = cache.pop(next(iter(cache)))
    return np.array([cache[row] for row in ids], np.int32), missing


def forget_ref(cache: dict[int, int], first: int, last: int) -> None:
    """Rows first .. last - 1 are not resident any more; their places are used first."""
    for row in range(first, last):
        if row in cache:
            place = cache.pop(row)
            others = dict(cache)
            cache.clear()
            cache.update({-1 - place: place} | others)


def most_selected(n_tokens: int, n_sinks: int, window: int, budget: Budget) -> int:
    """Rows of the largest selection of a head in a slot of n_tokens tokens."""
    lengths = (n_tokens, min(n_tokens, budget.min_len))
    return max(
        budget_of(
            n,
            indexed_end(n - 1, n_sinks, window) - n_sinks,
            budget.ratio,
            budget.at_least,
            budget.min_len,
        )
        for n in lengths
    )


def directory_bytes(n_places: int, n_rows: int) -> int:
    """Bytes of the directory of a head with that many indexed rows."""
    return (n_places + 1) * 12 + n_rows * 4


def _make_list() -> tuple[Any, Any]:
    """Inline functions over links: take(links, node) out of the ring, and put(links, node, before, behind)
    between two others.
    """
    from ..cpu import vector_ops as v

    @v.inline
    def take(links: int, node: int) -> None:
        behind, before = v.get_i32(links + node * 8), v.get_i32(links + node * 8 + 4)
        v.put_i32(links + before * 8, behind)
        v.put_i32(links + behind * 8 + 4, before)

    @v.inline
    def put(links: int, node: int, before: int, behind: int) -> None:
        v.put_i32(links + node * 8, behind)
        v.put_i32(links + node * 8 + 4, before)
        v.put_i32(links + before * 8, node)
        v.put_i32(links + behind * 8 + 4, node)

    return take, put


def make_forget() -> Any:
    """An inline forget(pools, slot, head, first, last) for indexed rows whose codes are about to change."""
    from ..cpu import vector_ops as v

    take, put = _make_list()
    directory_of, places_at = make_address("directory"), pool_word("n_places")

    @v.inline
    def forget(pools: int, slot: int, head: int, first: int, last: int) -> None:
        n_places = v.get_i64(pools + places_at)
        if n_places == 0:
            return
        links = directory_of(pools, slot, head)
        owners = links + (n_places + 1) * 8
        nodes = owners + (n_places + 1) * 4
        for row in range(first, last):
            node = v.get_i32(nodes + row * 4)
            if node:
                v.put_i32(nodes + row * 4, 0)
                v.put_i32(owners + node * 4, 0)
                take(links, node)
                put(links, node, 0, v.get_i32(links))

    return forget


def yakv_fetch_cpu(row_bytes: int) -> Any:
    """Makes the selected rows resident. Threads share (row, kv head).

    Args: pools, slots, n_rows*, ids, ids_stride, counts, places.
    Shapes: places int32 as ids: where in the cache of its head a selected row lies; others as in
    yakv_select_cpu. A head has at least as many places as rows are selected.
    """
    from ..cpu import vector_ops as v

    take, put = _make_list()
    directory_of, rows_of, scales_of = (make_address(name) for name in ("directory", "rows", "scales"))
    cached_rows_of, cached_scales_of = make_address("cached_rows"), make_address("cached_scales")
    heads_at, places_at, hits_at = pool_word("n_kv_heads"), pool_word("n_places"), pool_word("hits")
    whole = row_bytes // 64 * 64

    @v.inline
    def link_all(links: int, n_places: int) -> None:
        for node in range(n_places + 1):
            v.put_i32(links + node * 8, node + 1 if node < n_places else 0)
            v.put_i32(links + node * 8 + 4, node - 1 if node > 0 else n_places)

    @v.inline
    def copy_row(target: int, source: int) -> None:
        for j in range(0, whole, 64):
            v.store_f32(target + j, v.load_f32(source + j))
        for j in range(whole, row_bytes, 8):
            v.put_i64(target + j, v.get_i64(source + j))

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        pools, slots, n_rows = v.get_i64(args), v.get_i64(args + 8), v.get_i64(v.get_i64(args + 16))
        ids, ids_stride, counts = v.get_i64(args + 24), v.get_i64(args + 32), v.get_i64(args + 40)
        places = v.get_i64(args + 48)
        n_heads, n_places = v.get_i64(pools + heads_at), v.get_i64(pools + places_at)
        first, last = v.share(n_rows * n_heads, thread, n_threads, 0)
        hits = 0
        for unit in range(first, last):
            slot, head = v.get_i64(slots + unit // n_heads * 8), unit % n_heads
            count = v.get_i64(counts + unit * 8)
            own_ids, own_places = ids + unit * ids_stride, places + unit * ids_stride
            links = directory_of(pools, slot, head)
            owners = links + (n_places + 1) * 8
            nodes = owners + (n_places + 1) * 4
            rows, scales = rows_of(pools, slot, head), scales_of(pools, slot, head)
            cached_rows = cached_rows_of(pools, slot, head)
            cached_scales = cached_scales_of(pools, slot, head)
            if v.get_i32(links) == 0:
                link_all(links, n_places)
            for i in range(count):
                row = v.get_i32(own_ids + i * 4)
                node = v.get_i32(nodes + row * 4)
                v.put_i32(own_places + i * 4, node - 1)
                if node:
                    take(links, node)
                    put(links, node, v.get_i32(links + 4), 0)
                    hits += 1
                else:
                    v.prefetch(rows + row * row_bytes)
                    v.prefetch(scales + row * 4)
            for i in range(count):
                if v.get_i32(own_places + i * 4) >= 0:
                    continue
                row = v.get_i32(own_ids + i * 4)
                node = v.get_i32(links)  # not of this step: those were put behind all others
                owner = v.get_i32(owners + node * 4)
                if owner:
                    v.put_i32(nodes + (owner - 1) * 4, 0)
                v.put_i32(owners + node * 4, row + 1)
                v.put_i32(nodes + row * 4, node)
                take(links, node)
                put(links, node, v.get_i32(links + 4), 0)
                place = node - 1
                v.put_i32(own_places + i * 4, place)
                copy_row(cached_rows + place * row_bytes, rows + row * row_bytes)
                v.put_i32(cached_scales + place * 4, v.get_i32(scales + row * 4))
        v.atomic_add(pools + hits_at, hits)

    return kernel
