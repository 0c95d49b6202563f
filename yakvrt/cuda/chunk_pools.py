"""Rows of which a step reads the best chunks, on a GPU: what stands for chunks, outliers and the last rows on
the device; all rows there too, or in pinned host memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.chunk_layout import ChunkShape
from ..kernels.low_rank_chunks import LowRankChunks, chunks_below
from ..ops import ELEMENT_BYTES, KvRows, element_type
from .device_array import DeviceArray
from .device_rows import DeviceRows, DeviceValues
from .memory import PinnedMemory
from .pinned_rows import PinnedRows, pinned_rows
from .ring_rows import fill_ring

if TYPE_CHECKING:
    from ..backend import SlotRows, SlotValues
    from .backend import CudaBackend


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """One layer. rows: of all tokens; ring: the last ones, at their positions modulo its length; outliers:
    exact ones of chunks that are always read; proxies: words [slots, Hk, chunks] of proxy_width numbers,
    landmarks of chunks that can be chosen; numbers int32 [slots, Hk, chunks] of these; counts int32 [slots,
    Hk, 2], of them and of all chunks. Keys of low rank, bf16 in words: left [slots, tokens] of rank numbers,
    basis [slots, Hk, rank] of D. The cache of chunks, and which of those that can be chosen these are, int32
    [slots, Hk, most_places].

    Shared by all layers: rope float32 [tokens, D]; counters int64 [5] of page_count_cuda; wanted and places
    int64 [slots]. A step chooses up to most_pages chunks of a head.
    """

    shape: ChunkShape
    n_tokens: int
    most_pages: int
    on_host: bool
    rows: KvRows
    ring: KvRows
    outliers: KvRows
    proxies: DeviceArray
    proxy_width: int
    numbers: DeviceArray
    counts: DeviceArray
    left: DeviceArray
    basis: DeviceArray
    rank: int
    cache: KvRows
    most_places: int
    recalled: DeviceArray
    rope: DeviceArray
    counters: DeviceArray
    wanted: PinnedMemory
    places: PinnedMemory


class ChunkPools:
    """The pools of all layers and slots. wanted: chunks that a step of each slot reads. A prompt's rows pass
    through the host.
    """

    token_axis = 1  # of what state() gives

    def __init__(
        self,
        backend: CudaBackend,
        sizes: tuple[int, int, int, int],
        shape: ChunkShape,
        most: tuple[int, int],
        staging: KvRows,
    ) -> None:
        """sizes, most: as Backend.page_pools(). Raises: DeviceError."""
        (n_layers, n_slots, n_kv_heads, n_tokens), (most_pages, most_places) = sizes, most
        self._backend, self._heads, self._shape = backend, n_kv_heads, shape
        self._staging = backend.slot_rows(staging, 0, n_kv_heads, shape.head_dim)
        on_host, dims = backend.kv_on_host, (n_layers, n_slots, n_kv_heads)
        most_chunks, page = shape.most_chunks(n_tokens), shape.page

        def exact(n_rows: int) -> list[KvRows]:
            return backend.kv_rows(*dims, n_rows, shape.head_dim, shape.kind)

        made = partial(pinned_rows, backend) if on_host else backend.kv_rows
        rows = made(*dims, n_tokens, shape.head_dim, shape.kind)
        rings, caches = exact(shape.ring_len(n_tokens)), exact(most_places * page)
        outliers = exact(max(1, shape.outlier_chunks(most_chunks) * page))
        self._rank = -(-shape.rank // 8) * 8  # whole pieces of 16 bytes
        self._rope = shape.rope(n_tokens)
        rope, counters = backend.put(self._rope.values), backend.put(np.zeros(5, np.int64))
        wanted, places = (backend.pinned((n_slots,), np.int64) for _ in range(2))
        self.wanted, self.places = (memory.array.view(np.int64) for memory in (wanted, places))
        row_words, heads = shape.head_dim * ELEMENT_BYTES[shape.kind] // 4, (n_slots, n_kv_heads)
        self.layers = [
            ChunkRows(
                shape,
                n_tokens,
                max(1, min(most_pages, n_tokens // page)),
                on_host,
                rows[layer],
                rings[layer],
                outliers[layer],
                backend.array((*heads, most_chunks, row_words), np.uint32),
                shape.head_dim,
                backend.array((*heads, most_chunks), np.int32),
                backend.array((*heads, 2), np.int32),
                backend.array((n_slots, n_tokens, self._rank // 2), np.uint32),
                backend.array((*heads, self._rank, shape.head_dim // 2), np.uint32),
                self._rank,
                caches[layer],
                most_places,
                backend.array((*heads, most_places), np.int32),
                rope,
                counters,
                wanted,
                places,
            )
            for layer in range(n_layers)
        ]

    def open(self, slot: int, n_tokens: int) -> None:
        """Slots have their memory from the start; another's chunks go."""
        for layer, held in enumerate(self.layers):
            for numbers in (held.numbers, held.counts):
                self._of_heads(numbers, slot, np.int32)[...] = 0
            self._empty_cache(layer, slot)

    def release(self, slot: int) -> None:
        """They keep it."""

    def store(self, layer: int, slot: int, n_held: int, n: int) -> None:
        """Takes over the exact rows at positions n_held .. n - 1 of the prompt under way, and makes all else
        anew from the rows of all n tokens.
        """
        held, rows, page = self.layers[layer], self._rows(layer, slot), self._shape.page
        rows.write(n_held, *self._staging.read(n_held, n))
        k, v = rows.read(0, n)
        made = LowRankChunks.of(k, self._shape, self._rope)
        counts = self._of_heads(held.counts, slot, np.int32)
        counts[...] = 0  # until all is there: an interrupted prompt leaves no chunks
        padding, n_others = self._rank - self._shape.rank, made.numbers.shape[1]
        tail = len(made.keys.left)
        self._left(layer, slot)[:, :tail][...] = np.pad(made.keys.left, [(0, 0), (0, padding)])
        self._basis(layer, slot)[...] = np.pad(made.keys.basis, [(0, 0), (0, padding), (0, 0)])
        self._proxies(layer, slot)[:, :n_others][...] = made.landmarks
        unused = held.numbers.shape[2] - n_others
        self._of_heads(held.numbers, slot, np.int32)[...] = np.pad(made.numbers, [(0, 0), (0, unused)])
        positions = (made.outliers[..., None] * page + np.arange(page)).reshape(self._heads, -1, 1)
        exact = (np.take_along_axis(x, positions, axis=1) for x in (k, v))
        self._on_device(held.outliers, slot).write(0, *exact)
        self._load_ring(layer, slot, n)
        self._empty_cache(layer, slot)
        counts[...] = n_others, made.n_chunks

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        """Writes the first n_held rows where a prompt's exact rows lie."""
        self._staging.write(0, *self._rows(layer, slot).read(0, n_held))

    def settle(self, layer: int, slot: int, n: int) -> None:
        """Forgets the chunks that n tokens have no longer in front of the tail, and empties the cache."""
        held = self.layers[layer]
        numbers, counts = (self._of_heads(x, slot, np.int32) for x in (held.numbers, held.counts))
        n_others, n_chunks = np.asarray(counts).T
        ends = np.minimum(n_chunks, self._shape.chunks(n))
        below, n_others = chunks_below(np.asarray(numbers), n_others, ends)
        counts[...] = np.stack([n_others, ends], axis=1)  # before numbers go
        numbers[...] = below
        self._load_ring(layer, slot, n)
        self._empty_cache(layer, slot)

    def _load_ring(self, layer: int, slot: int, n: int) -> None:
        """With the last of n tokens."""
        ring = self._on_device(self.layers[layer].ring, slot)
        ring_len = self._shape.ring_len(self.layers[layer].n_tokens)
        fill_ring(ring, self._rows(layer, slot), n, 0, ring_len)

    def _empty_cache(self, layer: int, slot: int) -> None:
        self._of_heads(self.layers[layer].recalled, slot, np.int32)[...] = -1

    def state(self, slot: int, n_held: int, n_places: int) -> dict[str, SlotValues]:
        """What n_held tokens of a slot occupy, by pool and layer, with so many places of a cache. Shapes:
        [Hk, n, numbers], left [1, n, rank], numbers and recalled [Hk, n], counts [Hk, 2].
        """
        found: dict[str, SlotValues] = {}
        shape = self._shape
        full = n_held // shape.page
        for layer, held in enumerate(self.layers):
            tables = (
                ("rows", self._rows(layer, slot), n_held),
                ("ring", self._on_device(held.ring, slot), min(n_held, shape.ring_len(held.n_tokens))),
                ("outliers", self._on_device(held.outliers, slot), shape.outlier_chunks(full) * shape.page),
                ("cache", self._on_device(held.cache, slot), n_places * shape.page),
            )
            for name, table, n in tables:
                found[f"{name}.k.{layer}"], found[f"{name}.v.{layer}"] = table.state(n)
            found[f"left.{layer}"] = self._left(layer, slot)[:, :n_held]
            found[f"basis.{layer}"] = self._basis(layer, slot)
            found[f"landmarks.{layer}"] = self._proxies(layer, slot)[:, :full]
            found[f"numbers.{layer}"] = self._of_heads(held.numbers, slot, np.int32)[:, :full]
            found[f"counts.{layer}"] = self._of_heads(held.counts, slot, np.int32)
            found[f"recalled.{layer}"] = self._of_heads(held.recalled, slot, np.int32)[:, :n_places]
        return found

    def counted(self) -> list[int]:
        """Since the start, over all layers: rows of all heads that were read, how many rows were asked for,
        and how many of these were in the cache; tokens taken in, and the lengths of their histories.
        """
        counted: list[int] = self.layers[0].counters.get(5, self._backend.stream).tolist()
        return counted

    def _rows(self, layer: int, slot: int) -> SlotRows:
        held, of = self.layers[layer], (slot, self._heads, self._shape.head_dim, self._backend.stream)
        return PinnedRows(held.rows, *of) if held.on_host else DeviceRows(held.rows, *of)

    def _on_device(self, rows: KvRows, slot: int) -> DeviceRows:
        return DeviceRows(rows, slot, self._heads, self._shape.head_dim, self._backend.stream)

    def _left(self, layer: int, slot: int) -> DeviceValues:
        held, bf16 = self.layers[layer].left, element_type("bf16")
        size = held.nbytes // len(held)
        whole = 1, held.shape[1], self._rank
        return DeviceValues(held, slot * size, size, whole, bf16, self._backend.stream)

    def _basis(self, layer: int, slot: int) -> DeviceValues:
        return self._of_heads(self.layers[layer].basis, slot, element_type("bf16"))

    def _proxies(self, layer: int, slot: int) -> DeviceValues:
        return self._of_heads(self.layers[layer].proxies, slot, element_type(self._shape.kind))

    def _of_heads(self, held: DeviceArray, slot: int, dtype: Any) -> DeviceValues:
        """What each of a slot's KV heads has of an array of numbers, or of words that hold them."""
        head = held.nbytes // (len(held) * self._heads)
        *_, n_words = held.shape
        row = n_words * held.dtype.itemsize // np.dtype(dtype).itemsize
        whole = self._heads, *held.shape[2:-1], row
        return DeviceValues(held, slot * self._heads * head, head, whole, dtype, self._backend.stream)
