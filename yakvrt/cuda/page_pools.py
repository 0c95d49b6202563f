"""Rows of which a step reads the best pages, on a GPU: what stands for pages, the first and the last rows on
the device; all rows there too, or in pinned host memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.chosen_rows import logits, top
from ..kernels.key_factors import project
from ..kernels.page_digests import page_digests_ref
from ..kernels.page_layout import PageShape, PromptProxies, chosen_end
from ..kernels.page_project import page_project_ref
from ..kernels.page_scores import MAX_GROUP
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
class PageRows:
    """One layer. rows: of all tokens; ring: the first and last ones. Of the Hc heads that choose, proxies:
    words [slots, Hc, pages] of proxy_width numbers; basis float32 [slots, Hc, ...], which turns keys into
    them; with a cache, the rows of its pages and which these are, int32 [slots, Hc, most_places]. Shared by
    all layers: counters int64 [5] of page_count_cuda; wanted and places int64 [slots]. A step chooses up to
    most_pages pages of a head.
    """

    shape: PageShape
    n_tokens: int
    most_pages: int
    on_host: bool
    rows: KvRows
    ring: KvRows
    proxies: DeviceArray
    proxy_width: int
    basis: DeviceArray
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
        self._choosing = n_kv_heads * shape.sharing
        self._staging = backend.slot_rows(staging, 0, n_kv_heads, shape.head_dim)
        on_host, dims = backend.kv_on_host, (n_layers, n_slots, n_kv_heads)
        made = partial(pinned_rows, backend) if on_host else backend.kv_rows
        rows = made(*dims, n_tokens, shape.head_dim, shape.kind)
        rings = backend.kv_rows(*dims, shape.ring_places, shape.head_dim, shape.kind)
        caches: Sequence[KvRows | None] = [None] * n_layers
        if most_places:
            of = n_layers, n_slots, self._choosing
            caches = backend.kv_rows(*of, most_places * shape.page, shape.head_dim, shape.kind)
        self._width = -(-shape.proxy_width // 8) * 8  # whole pieces of 16 bytes
        n_pages = max(1, n_tokens // shape.page) if self._width else 1
        row_words = max(1, self._width * ELEMENT_BYTES[shape.proxy_kind] // 4)
        self._basis_shape = shape.basis_shape
        if shape.proxy == "channels":
            self._basis_shape = shape.head_dim, self._width
        held = n_slots, self._choosing
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
                backend.array((*held, n_pages, row_words), np.uint32),
                self._width,
                backend.array((*held, *self._basis_shape) if shape.n_channels else (1,), np.float32),
                caches[layer],
                most_places,
                backend.array((*held, max(most_places, 1)), np.int32),
                counters,
                wanted,
                places,
            )
            for layer in range(n_layers)
        ]

    def open(self, slot: int, n_tokens: int) -> None:
        """Slots have their memory from the start; what another has left in the cache, and its basis, go."""
        self._empty_caches(range(len(self.layers)), slot)
        if self._shape.n_channels:
            for layer in range(len(self.layers)):
                self.layers[layer].basis.part(slot, 1).clear(self._backend.stream)

    def release(self, slot: int) -> None:
        """They keep it."""

    def store(self, layer: int, slot: int, n_held: int, n: int, told: PromptProxies | None = None) -> None:
        """Takes over the exact rows at positions n_held .. n - 1 of the prompt under way."""
        page, rows = self._shape.page, self._rows(layer, slot)
        rows.write(n_held, *self._staging.read(n_held, n))
        if told:
            basis = self._basis(layer, slot)
            basis[...] = _widened(told.basis, basis.shape[-1])
        if self._width:
            first, last = n_held // page, n // page
            if told and told.proxies is not None:
                made = told.proxies
            else:
                made = self._described(layer, slot, rows.read(first * page, last * page)[0])
            self._proxies(layer, slot)[:, first:last][...] = _widened(made, self._width)
        self.settle(layer, slot, n)
        if told and told.proxies is not None and told.asking is not None:
            self._recall(layer, slot, n, told.proxies, told.asking)

    def _described(self, layer: int, slot: int, k: np.ndarray) -> np.ndarray:
        """What stands for whole pages of keys. Shapes: [Hk, n, D] -> [Hc, pages, proxy width]."""
        shape = self._shape
        if shape.has_boxes:
            return page_digests_ref(k, shape.page, centred=shape.proxy == "centred")
        basis = np.asarray(self._basis(layer, slot))
        if shape.proxy == "channels":
            return page_project_ref(k, basis)
        return project(np.repeat(k, shape.sharing, axis=0), basis[:, 1])

    def _recall(self, layer: int, slot: int, n: int, proxies: np.ndarray, asking: np.ndarray) -> None:
        """Fills the cache with the best of pages of one token for these queries. Shapes: proxies [Hc, n,
        numbers], asking [Hc, 1, numbers].
        """
        shape = self._shape
        n_pages = chosen_end(n, shape.n_sinks, shape.window, shape.page)
        count = min(int(self.wanted[slot]), int(self.places[slot]), n_pages)
        if not count:
            return
        held = proxies[:, :n_pages].astype(element_type(shape.proxy_kind))
        best = top(logits(asking, held)[:, 0], count)
        first, last = int(best.min()), int(best.max()) + 1
        owners = np.arange(self._choosing)[:, None] // shape.sharing
        k, v = (rows[owners, best - first] for rows in self._rows(layer, slot).read(first, last))
        cache = self.layers[layer].cache
        assert cache
        self._on_device(cache, slot, self._choosing).write(0, k, v)
        self._recalled(layer, slot)[:, :count][...] = best

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        """Writes the first n_held rows where a prompt's exact rows lie."""
        self._staging.write(0, *self._rows(layer, slot).read(0, n_held))

    def settle(self, layer: int, slot: int, n: int) -> None:
        """Loads the first and last of n tokens into the ring, and empties the cache."""
        ring = self._on_device(self.layers[layer].ring, slot, self._heads)
        fill_ring(ring, self._rows(layer, slot), n, self._shape.n_sinks, self._shape.ring_len)
        self._empty_caches([layer], slot)

    def _empty_caches(self, layers: Iterable[int], slot: int) -> None:
        for layer in layers:
            if self.layers[layer].cache:
                self._recalled(layer, slot)[...] = -1

    def state(self, slot: int, n_held: int, n_places: int) -> dict[str, SlotValues]:
        """What n_held tokens of a slot occupy, by pool and layer, with so many places of a cache. Shapes:
        [heads, n, numbers], recalled [heads, n].
        """
        found: dict[str, SlotValues] = {}
        for layer, held in enumerate(self.layers):
            tables = [("rows", self._rows(layer, slot), n_held)]
            ring = self._on_device(held.ring, slot, self._heads)
            tables.append(("ring", ring, self._shape.ring_places))
            if held.cache:
                cache = self._on_device(held.cache, slot, self._choosing)
                tables.append(("cache", cache, n_places * self._shape.page))
                found[f"recalled.{layer}"] = self._recalled(layer, slot)[:, :n_places]
            if self._width:
                found[f"proxies.{layer}"] = self._proxies(layer, slot)[:, : n_held // self._shape.page]
            if self._shape.n_channels:
                found[f"basis.{layer}"] = self._basis(layer, slot)
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

    def _on_device(self, rows: KvRows, slot: int, n_heads: int) -> DeviceRows:
        return DeviceRows(rows, slot, n_heads, self._shape.head_dim, self._backend.stream)

    def _recalled(self, layer: int, slot: int) -> DeviceValues:
        held = self.layers[layer].recalled
        return self._of_slot(held, slot, held.shape[2:], np.int32)

    def _proxies(self, layer: int, slot: int) -> DeviceValues:
        held = self.layers[layer].proxies
        return self._of_slot(held, slot, (held.shape[2], self._width), element_type(self._shape.proxy_kind))

    def _basis(self, layer: int, slot: int) -> DeviceValues:
        held = self.layers[layer].basis
        return self._of_slot(held, slot, held.shape[2:], np.float32)

    def _of_slot(self, held: DeviceArray, slot: int, shape: tuple[int, ...], dtype: Any) -> DeviceValues:
        """What each of the heads that choose has of an array."""
        head = held.nbytes // (held.shape[0] * self._choosing)
        whole = self._choosing, *shape
        return DeviceValues(held, slot * self._choosing * head, head, whole, dtype, self._backend.stream)


def _widened(numbers: np.ndarray, width: int) -> np.ndarray:
    """By zeros behind the last axis."""
    return np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, width - numbers.shape[-1])])
