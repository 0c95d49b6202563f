"""Rows of which a step reads the best pages, on a GPU: what stands for pages, the first and the last rows on
the device; all rows there too, or in pinned host memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.page_digests import page_digests_ref
from ..kernels.page_layout import PageShape
from ..kernels.page_project import page_project_ref
from ..kernels.page_scores import MAX_GROUP
from ..ops import ELEMENT_BYTES, KvRows, element_type
from .device_array import DeviceArray
from .device_rows import DeviceRows, DeviceValues
from .memory import PinnedMemory
from .pinned_rows import PinnedRows, pinned_rows

if TYPE_CHECKING:
    from ..backend import SlotRows, SlotValues
    from .backend import CudaBackend


@dataclass(frozen=True, slots=True)
class PageRows:
    """One layer. rows: of all tokens; ring: the first and last ones; proxies: words [slots, Hk, pages] of
    proxy_width numbers; skew float32 [slots, Hk, D, proxy_width], of channels; with a cache, the rows of its
    pages and which these are, int32 [slots, Hk, most_places]. Shared by all layers: counters int64 [5] of
    page_count_cuda; wanted and places int64 [slots]. A step chooses up to most_pages pages of a head.
    """

    shape: PageShape
    n_tokens: int
    most_pages: int
    on_host: bool
    rows: KvRows
    ring: KvRows
    proxies: DeviceArray
    proxy_width: int
    skew: DeviceArray
    cache: KvRows | None
    most_places: int
    recalled: DeviceArray
    counters: DeviceArray
    wanted: PinnedMemory
    places: PinnedMemory


def check_pages(group: int) -> None:
    """Raises: ValueError for what has no CUDA kernels."""
    if group > MAX_GROUP:
        raise ValueError(
            f"on a GPU, pages are scored for up to {MAX_GROUP} query heads of a KV head, and the model has"
            f" {group}: take another KV method, or the CPU"
        )


class PagePools:
    """The pools of all layers and slots. wanted: pages that a step of each slot reads. A prompt's rows pass
    through the host.
    """

    token_axis = 1  # of what state() gives

    def __init__(
        self,
        backend: CudaBackend,
        sizes: tuple[int, int, int, int],
        shape: PageShape,
        most: tuple[int, int],
        staging: KvRows,
    ) -> None:
        """sizes, most: as Backend.page_pools(). Raises: DeviceError."""
        (n_layers, n_slots, n_kv_heads, n_tokens), (most_pages, most_places) = sizes, most
        self._backend, self._heads, self._shape = backend, n_kv_heads, shape
        self._staging = backend.slot_rows(staging, 0, n_kv_heads, shape.head_dim)
        on_host, dims = backend.kv_on_host, (n_layers, n_slots, n_kv_heads)
        made = partial(pinned_rows, backend) if on_host else backend.kv_rows
        rows = made(*dims, n_tokens, shape.head_dim, shape.kind)
        rings = backend.kv_rows(*dims, shape.ring_places, shape.head_dim, shape.kind)
        caches: Sequence[KvRows | None] = [None] * n_layers
        if most_places:
            caches = backend.kv_rows(*dims, most_places * shape.page, shape.head_dim, shape.kind)
        self._width = -(-shape.proxy_width // 8) * 8  # whole pieces of 16 bytes
        n_pages = max(1, n_tokens // shape.page) if self._width else 1
        row_words = max(1, self._width * ELEMENT_BYTES[shape.kind] // 4)
        n_channels = self._width if shape.n_channels else 1
        counters = backend.put(np.zeros(5, np.int64))
        wanted, places = (backend.pinned((n_slots,), np.int64) for _ in range(2))
        self.wanted, self.places = (memory.array.view(np.int64) for memory in (wanted, places))
        self.layers = [
            PageRows(
                shape,
                n_tokens,
                max(1, min(most_pages, n_tokens // shape.page)),
                on_host,
                rows[layer],
                rings[layer],
                backend.array((n_slots, n_kv_heads, n_pages, row_words), np.uint32),
                self._width,
                backend.array((n_slots, n_kv_heads, shape.head_dim, n_channels), np.float32),
                caches[layer],
                most_places,
                backend.array((n_slots, n_kv_heads, max(most_places, 1)), np.int32),
                counters,
                wanted,
                places,
            )
            for layer in range(n_layers)
        ]

    def open(self, slot: int, n_tokens: int) -> None:
        """Slots have their memory from the start; what another has left in the cache, and its matrix, go."""
        self._empty_caches(range(len(self.layers)), slot)
        if self._shape.n_channels:
            for layer in range(len(self.layers)):
                self._skew(layer, slot)[...] = 0

    def release(self, slot: int) -> None:
        """They keep it."""

    def set_skew(self, layer: int, slot: int, skew: np.ndarray) -> None:
        """The matrix that turns keys. Shapes: float32 [Hk, D, channels]."""
        padding = [(0, 0), (0, 0), (0, self._width - skew.shape[2])]
        self._skew(layer, slot)[...] = np.pad(skew, padding)

    def store(self, layer: int, slot: int, n_held: int, n: int) -> None:
        """Takes over the exact rows at positions n_held .. n - 1 of the prompt under way."""
        page, rows = self._shape.page, self._rows(layer, slot)
        rows.write(n_held, *self._staging.read(n_held, n))
        if self._width:
            first, last = n_held // page, n // page
            k, _ = rows.read(first * page, last * page)
            if self._shape.has_boxes:
                made = page_digests_ref(k, page, centred=self._shape.proxy == "centred")
            else:
                made = page_project_ref(k, np.asarray(self._skew(layer, slot)))
            self._proxies(layer, slot)[:, first:last][...] = made
        self.settle(layer, slot, n)

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        """Writes the first n_held rows where a prompt's exact rows lie."""
        self._staging.write(0, *self._rows(layer, slot).read(0, n_held))

    def settle(self, layer: int, slot: int, n: int) -> None:
        """Loads the first and last of n tokens into the ring, and empties the cache."""
        sinks, ring_len = self._shape.n_sinks, self._shape.ring_len
        rows, ring = self._rows(layer, slot), self._on_device(self.layers[layer].ring, slot)
        ring.write(0, *rows.read(0, min(sinks, n)))
        first = max(sinks, n - ring_len)
        turn = first + -(first - sinks) % ring_len  # whose place is the first behind the sinks
        for begin, end in ((first, min(turn, n)), (turn, n)):
            if begin < end:
                ring.write(sinks + (begin - sinks) % ring_len, *rows.read(begin, end))
        self._empty_caches([layer], slot)

    def _empty_caches(self, layers: Iterable[int], slot: int) -> None:
        for layer in layers:
            if self.layers[layer].cache:
                self._recalled(layer, slot)[...] = -1

    def state(self, slot: int, n_held: int, n_places: int) -> dict[str, SlotValues]:
        """What n_held tokens of a slot occupy, by pool and layer, with so many places of a cache. Shapes:
        [Hk, n, numbers], recalled [Hk, n].
        """
        found: dict[str, SlotValues] = {}
        for layer, held in enumerate(self.layers):
            tables = [("rows", self._rows(layer, slot), n_held)]
            tables.append(("ring", self._on_device(held.ring, slot), self._shape.ring_places))
            if held.cache:
                tables.append(("cache", self._on_device(held.cache, slot), n_places * self._shape.page))
                found[f"recalled.{layer}"] = self._recalled(layer, slot)[:, :n_places]
            if self._width:
                found[f"proxies.{layer}"] = self._proxies(layer, slot)[:, : n_held // self._shape.page]
            if self._shape.n_channels:
                found[f"skew.{layer}"] = self._skew(layer, slot)
            for name, table, n in tables:
                found[f"{name}.k.{layer}"], found[f"{name}.v.{layer}"] = table.state(n)
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

    def _recalled(self, layer: int, slot: int) -> DeviceValues:
        held = self.layers[layer].recalled
        return self._of_slot(held, slot, held.shape[2:], np.int32)

    def _proxies(self, layer: int, slot: int) -> DeviceValues:
        held = self.layers[layer].proxies
        return self._of_slot(held, slot, (held.shape[2], self._width), element_type(self._shape.kind))

    def _skew(self, layer: int, slot: int) -> DeviceValues:
        held = self.layers[layer].skew
        return self._of_slot(held, slot, held.shape[2:], np.float32)

    def _of_slot(self, held: DeviceArray, slot: int, shape: tuple[int, ...], dtype: Any) -> DeviceValues:
        """What each of its KV heads has of an array."""
        head = held.nbytes // (held.shape[0] * self._heads)
        whole = self._heads, *shape
        return DeviceValues(held, slot * self._heads * head, head, whole, dtype, self._backend.stream)
