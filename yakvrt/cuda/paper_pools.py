"""YAKV as its paper has it, on a GPU: selector blocks and a ring of exact rows on the device; codes, their
scales and the exact rows of all tokens there too, or in pinned host memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels.higgs_code import HiggsCode, side_by_side
from ..kernels.higgs_layout import BLOCK_TOKENS, SELECTORS
from ..kernels.higgs_selector import selector_blocks_ref, selector_codes_ref
from ..kernels.paper_layout import STORE_BLOCK, PaperShape, ring_len
from ..kernels.paper_rows import check_width
from ..kernels.rope_table import RopeTable
from ..ops import KvRows
from .device_array import DeviceArray
from .device_grid import Grid, device_grid
from .device_rows import DeviceRows, DeviceValues
from .memory import PinnedMemory
from .pinned_pool import padded_bytes
from .pinned_rows import PinnedRows, pinned_rows
from .ring_rows import fill_ring

if TYPE_CHECKING:
    from ..backend import SlotRows, SlotValues
    from .backend import CudaBackend

SELECTOR = "2bit"


@dataclass(frozen=True, slots=True)
class PaperRows:
    """One layer. rows: exact ones of all slot_tokens; ring: the first n_sinks and the last ring_len. Indexed
    tokens begin behind the first ones: selectors uint32 [slots, Hk, blocks of 64, words], n_tokens in whole
    blocks. codes: `width` bytes [slots, slot_tokens], of K and of V; scales float16 [slots, slot_tokens, 2].
    ends: address of int64 [slots]. Shared by all layers: table float32 [slot_tokens, D], of RoPE; counters
    int64 [5] of page_count_cuda, for which a hit is a row of codes that another head chose too; wanted int64
    [slots]. A step chooses up to most_pages tokens of a head; there is no cache.
    """

    shape: PaperShape
    slot_tokens: int
    n_tokens: int
    most_pages: int
    width: int
    ring_len: int
    rows: KvRows
    ring: KvRows
    selectors: DeviceArray
    codes: DeviceArray | PinnedMemory
    scales: DeviceArray | PinnedMemory
    ends: int
    table: DeviceArray
    selector_grid: Grid
    row_grid: Grid
    counters: DeviceArray
    wanted: PinnedMemory
    most_places: int = 0


class PaperPools:
    """The pools of all layers and slots. wanted: tokens that a step of each slot chooses; places: unused. A
    prompt's rows pass through the host.
    """

    token_axis = 1  # of what state() gives

    def __init__(
        self,
        backend: CudaBackend,
        sizes: tuple[int, int, int, int],
        shape: PaperShape,
        most: tuple[int, int],
        staging: KvRows,
    ) -> None:
        """sizes, most: as Backend.page_pools(). Raises: DeviceError, ValueError for what has no kernels."""
        n_layers, n_slots, n_kv_heads, n_tokens = sizes
        self._backend, self._heads, self._shape = backend, n_kv_heads, shape
        self._n_slots, self._n_tokens = n_slots, n_tokens
        self._selector = HiggsCode.of("d4n256", shape.head_dim)
        self._row_code = HiggsCode.of("d2n256", n_kv_heads * shape.head_dim)
        self._rope = RopeTable(np.array(shape.inv_freq), shape.rope_scale, n_tokens)
        self._staging = backend.slot_rows(staging, 0, n_kv_heads, shape.head_dim)
        width, self._on_host = len(self._row_code.turn), backend.kv_on_host
        check_width(width)
        dims = n_layers, n_slots, n_kv_heads
        n_blocks = max(1, -(-(n_tokens - shape.n_sinks) // BLOCK_TOKENS))
        made = partial(pinned_rows, backend) if self._on_host else backend.kv_rows
        rows = made(*dims, n_tokens, shape.head_dim, shape.kind)
        ring_places = ring_len(n_tokens, shape.recent)
        rings = backend.kv_rows(*dims, shape.n_sinks + ring_places, shape.head_dim, shape.kind)
        block_words = SELECTORS[SELECTOR].block_bytes(shape.head_dim) // 4
        tables = [n_slots * n_tokens * n for n in (width, 4)]  # bytes of codes and of scales
        pinned = backend.pinned_pool(n_layers * padded_bytes(tables)) if self._on_host else None
        ends, wanted = (backend.pinned((n, n_slots), np.int64) for n in (n_layers, 1))
        self._ends = ends.array.view(np.int64).reshape(n_layers, n_slots)
        self.wanted, self.places = wanted.array.view(np.int64), np.zeros(n_slots, np.int64)
        self._ends[...], self.wanted[...] = 0, 0

        def coded(n_bytes: int) -> DeviceArray | PinnedMemory:
            return pinned.take(n_bytes) if pinned else backend.array((n_bytes // 4,), np.uint32)

        table, counters = backend.put(self._rope.values), backend.put(np.zeros(5, np.int64))
        selector_grid, row_grid = (device_grid(backend, name) for name in ("d4n256", "d2n256"))
        self.layers = [
            PaperRows(
                shape,
                n_tokens,
                n_blocks * BLOCK_TOKENS,
                max(1, min(most[0], n_tokens)),
                width,
                ring_places,
                rows[layer],
                rings[layer],
                selectors=backend.array((n_slots, n_kv_heads, n_blocks, block_words), np.uint32),
                codes=coded(tables[0]),
                scales=coded(tables[1]),
                ends=ends.address + 8 * n_slots * layer,
                table=table,
                selector_grid=selector_grid,
                row_grid=row_grid,
                counters=counters,
                wanted=wanted,
            )
            for layer in range(n_layers)
        ]

    def open(self, slot: int, n_tokens: int) -> None:
        """Slots have their memory from the start."""
        self._ends[:, slot] = 0

    def release(self, slot: int) -> None:
        """They keep it."""

    def store(self, layer: int, slot: int, n_held: int, n: int) -> None:
        """Takes over the exact rows at positions n_held .. n - 1 of the prompt under way, and indexes what
        now lies before its last tokens.
        """
        old = int(self._ends[layer, slot])
        end = max(old, self._shape.indexed_end(n))
        for first in range(max(old, self._shape.n_sinks), end, STORE_BLOCK):
            self._encode(layer, slot, first, min(first + STORE_BLOCK, end))
        self._rows(layer, slot).write(n_held, *self._staging.read(n_held, n))
        self._ends[layer, slot] = end
        self._fill_ring(layer, slot, n)

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        """Writes the first n_held rows where a prompt's exact rows lie."""
        rows, end = self._rows(layer, slot), int(self._ends[layer, slot])
        first = min(self._shape.n_sinks, end)
        self._staging.write(0, *rows.read(0, first))
        self._decode(self._staging, layer, slot, first, end)
        self._staging.write(end, *rows.read(end, n_held))

    def settle(self, layer: int, slot: int, n: int) -> None:
        """Behind a cut to n tokens: those that are now among the last ones come from their codes."""
        begin, end = self._shape.indexed_end(n), int(self._ends[layer, slot])
        if begin < end:
            self._decode(self._rows(layer, slot), layer, slot, begin, min(n, end))
            self._ends[layer, slot] = begin
        self._fill_ring(layer, slot, n)

    def state(self, slot: int, n_held: int, n_places: int) -> dict[str, SlotValues]:
        """What n_held tokens of a slot occupy, by pool and layer; codes of tokens that are not indexed, which
        others may have left there, become zeros. Shapes: [heads, n, ...], ends [L], views.
        """
        sinks, end = self._shape.n_sinks, self._shape.indexed_end(n_held)
        n_blocks = -(-(end - min(sinks, end)) // BLOCK_TOKENS)
        found: dict[str, SlotValues] = {"ends": self._ends[:, slot]}
        for layer, held in enumerate(self.layers):
            self._forget(layer, slot, max(sinks, int(self._ends[layer, slot])), end, n_blocks)
            codes, scales = self._coded(layer, slot)
            found[f"exact.k.{layer}"], found[f"exact.v.{layer}"] = self._rows(layer, slot).state(n_held)
            n_near = min(n_held, sinks + held.ring_len)
            found[f"ring.k.{layer}"], found[f"ring.v.{layer}"] = self._ring(layer, slot).state(n_near)
            found[f"codes.{layer}"], found[f"scales.{layer}"] = codes[:, sinks:end], scales[:, sinks:end]
            found[f"selectors.{layer}"] = self._selectors(layer, slot)[:, :n_blocks]
        return found

    def counted(self) -> list[int]:
        """As PagePools.counted(), and how many tokens' rows were read from codes."""
        counters = self.layers[0].counters.get(5, self._backend.stream)
        read, asked, shared, tokens, lengths = counters.tolist()
        return [read, asked, 0, tokens, lengths, asked - shared]

    def _encode(self, layer: int, slot: int, first: int, last: int) -> None:
        """Indexes the tokens at positions first to last - 1 of the prompt under way."""
        k, v = self._staging.read(first, last)
        self._put_selectors(layer, slot, first, *zip(*map(self._selector.encode, k), strict=True))
        plain = self._rope.unrotate(k, first), v
        parts = zip(*(self._row_code.encode(side_by_side(rows)) for rows in plain), strict=True)
        for held, of_k_and_v in zip(self._coded(layer, slot), parts, strict=True):
            held[:, first:last][...] = np.stack(of_k_and_v, axis=1)[None]

    def _decode(self, to: SlotRows, layer: int, slot: int, first: int, last: int) -> None:
        """Writes K after RoPE and V of indexed tokens."""
        for begin in range(first, last, STORE_BLOCK):
            end = min(begin + STORE_BLOCK, last)
            codes, scales = (np.asarray(held[:, begin:end])[0] for held in self._coded(layer, slot))
            k, v = (
                self._row_code.decode(codes[:, i], scales[:, i], slice(None))
                .reshape(end - begin, self._heads, -1)
                .swapaxes(0, 1)
                for i in range(2)
            )
            to.write(begin, self._rope.rotate(k, np.arange(begin, end)), v)

    def _put_selectors(self, layer: int, slot: int, first: int, codes: Any, scales: Any) -> None:
        """Of tokens from position `first` on; those behind them in their block become zeros.

        Shapes: codes uint8 [Hk, n, D / 4], scales float16 [Hk, n].
        """
        head_dim, at = self._shape.head_dim, first - self._shape.n_sinks
        block, before, n = at // BLOCK_TOKENS, at % BLOCK_TOKENS, at % BLOCK_TOKENS + len(codes[0])
        n_blocks = -(-n // BLOCK_TOKENS)
        held = self._selectors(layer, slot)[:, block : block + n_blocks]
        kept = np.asarray(held[:, :1]).view(np.uint8)
        made = np.empty((self._heads, *held.shape[1:]), np.uint32)
        for head, block_words in enumerate(kept):
            all_codes = np.zeros((n_blocks * BLOCK_TOKENS, head_dim // 4), np.uint8)
            all_scales = np.zeros(len(all_codes), np.float16)
            known_codes, known_scales = selector_codes_ref(SELECTOR, block_words, head_dim)
            all_codes[:before], all_scales[:before] = known_codes[:before], known_scales[:before]
            all_codes[before:n], all_scales[before:n] = codes[head], scales[head]
            made[head] = selector_blocks_ref(SELECTOR, all_codes, all_scales, head_dim).view(np.uint32)
        held[...] = made

    def _forget(self, layer: int, slot: int, first: int, last: int, n_blocks: int) -> None:
        """Codes at positions first to last - 1, and those behind them in their block."""
        if first < last:
            for held in self._coded(layer, slot):
                held[:, first:last][...] = 0
        n = self._shape.n_sinks + n_blocks * BLOCK_TOKENS - first
        if n > 0:
            codes = np.zeros((self._heads, n, self._shape.head_dim // 4), np.uint8)
            self._put_selectors(layer, slot, first, codes, np.zeros((self._heads, n), np.float16))

    def _fill_ring(self, layer: int, slot: int, n: int) -> None:
        of = self._ring(layer, slot), self._rows(layer, slot)
        fill_ring(*of, n, self._shape.n_sinks, self.layers[layer].ring_len)

    def _rows(self, layer: int, slot: int) -> SlotRows:
        rows, of = self.layers[layer].rows, (slot, self._heads, self._shape.head_dim, self._backend.stream)
        return PinnedRows(rows, *of) if self._on_host else DeviceRows(rows, *of)

    def _ring(self, layer: int, slot: int) -> DeviceRows:
        ring = self.layers[layer].ring
        return DeviceRows(ring, slot, self._heads, self._shape.head_dim, self._backend.stream)

    def _selectors(self, layer: int, slot: int) -> DeviceValues:
        held = self.layers[layer].selectors
        head = prod(held.shape[2:]) * 4
        whole = self._heads, *held.shape[2:]
        return DeviceValues(held, slot * self._heads * head, head, whole, np.uint32, self._backend.stream)

    def _coded(self, layer: int, slot: int) -> tuple[SlotValues, SlotValues]:
        """Codes uint8 [1, n_tokens, 2, n_codes] and scales float16 [1, n_tokens, 2] of K and of V."""
        held = self.layers[layer]
        codes = self._of_slot(held.codes, slot, (self._n_tokens, 2, held.width // 2), np.uint8)
        return codes, self._of_slot(held.scales, slot, (self._n_tokens, 2), np.float16)

    def _of_slot(
        self, held: DeviceArray | PinnedMemory, slot: int, shape: tuple[int, ...], dtype: Any
    ) -> SlotValues:
        if isinstance(held, DeviceArray):
            n_bytes = held.nbytes // self._n_slots
            return DeviceValues(held, slot * n_bytes, n_bytes, (1, *shape), dtype, self._backend.stream)
        self._backend.stream.synchronise()
        values: np.ndarray = held.array.view(dtype).reshape(self._n_slots, *shape)[slot : slot + 1]
        return values
