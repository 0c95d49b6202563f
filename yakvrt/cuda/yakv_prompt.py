"""Moves rows between a prompt's exact rows and YAKV's pools on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.higgs_layout import BLOCK_TOKENS
from ..kernels.yakv_layout import indexed_end, ring_place
from ..ops import KvRows
from .device_array import DeviceArray
from .kernel_choice import recall_kernel
from .record_codes import BlockRows, pool_words, record_codes
from .yakv_pools import YakvRows

if TYPE_CHECKING:
    from .backend import CudaBackend

PIECE = 16 * BLOCK_TOKENS  # rows that are encoded at once


class YakvPrompt:
    """One layer of one slot at a time. `staging` are the exact rows of a prompt's layers in turn. Nothing
    waits, so that a layer is stored while the next one computes.
    """

    def __init__(
        self, backend: CudaBackend, layers: Sequence[YakvRows], n_kv_heads: int, staging: Sequence[KvRows]
    ) -> None:
        """Raises: DeviceError."""
        shape = layers[0].shape
        self._backend, self._layers, self._heads, self._shape = backend, layers, n_kv_heads, shape
        self._staging = staging
        n_pieces = -(-layers[0].n_blocks * BLOCK_TOKENS // PIECE)
        # of every piece: slot, first and last row, tokens, 0, 1
        self._spans = backend.array((n_pieces, 6), np.int64)
        self._ring = backend.upload_ring(self._spans)
        rows = (n_kv_heads, PIECE, shape.head_dim)
        self._k, self._v = backend.array(rows, np.float32), backend.array(rows, np.float32)

    def store(self, layer: int, slot: int, n_held: int, n_tokens: int) -> None:
        """Takes over the exact rows at positions n_held .. n_tokens - 1, and those of the window."""
        rows, sinks = self._layers[layer], self._shape.n_sinks
        begin, end = (indexed_end(n, sinks, self._shape.window) for n in (n_held, n_tokens))
        staging = self._staged(layer)
        if begin < end:
            firsts = range(begin - sinks, end - sinks, PIECE)
            spans = np.zeros(self._spans.shape, np.int64)
            for i, first in enumerate(firsts):
                spans[i] = slot, first, min(first + PIECE, end - sinks), n_tokens, 0, 1
            self._ring.upload(spans, self._backend.stream)
            if begin == sinks and self._shape.centred:
                self._mean_key(rows, staging)
            for i in range(len(firsts)):
                span = self._spans.part(i, 1).reshaped((6,))
                self._widen(rows, staging, span)
                record_codes(self._backend.launch, rows, self._heads, self._blocks_of(span))
            if rows.directory:
                rows.directory.part(slot, 1).clear(self._backend.stream)
        self._copy(rows, staging, slot, min(n_held, sinks), min(n_tokens, sinks), to_ring=True)
        self._copy(rows, staging, slot, max(end, sinks), n_tokens, to_ring=True)

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        """Writes the first n_held rows where a prompt's exact rows lie."""
        rows, sinks, staging = self._layers[layer], self._shape.n_sinks, self._staged(layer)
        end = indexed_end(n_held, sinks, self._shape.window)
        self._copy(rows, staging, slot, 0, min(n_held, sinks), to_ring=False)
        self._copy(rows, staging, slot, max(end, sinks), n_held, to_ring=False)
        if sinks < end:
            never = rows.n_blocks * BLOCK_TOKENS
            self._recall(rows, slot, 0, end - sinks, staging.k, staging.v, staging.head_bytes // 4, never)

    def refill(self, layer: int, slot: int, n_held: int, first: int, last: int) -> None:
        """Indexed positions first .. last - 1 of a slot return to the ring."""
        rows, sinks = self._layers[layer], self._shape.n_sinks
        head = rows.ring_places * self._shape.head_dim // 2
        k, v = (ring.part(slot, 1) for ring in (rows.ring_k, rows.ring_v))
        self._recall(rows, slot, first - sinks, last - sinks, k, v, head, rows.ring_places - sinks)

    def _recall(
        self,
        rows: YakvRows,
        slot: int,
        first: int,
        last: int,
        k: DeviceArray,
        v: DeviceArray,
        head_words: int,
        wraps_after: int,
    ) -> None:
        """Indexed rows first .. last - 1 become exact ones, behind the sinks of k and v."""
        shape, heads = self._shape, self._heads
        codes, codes_slot, codes_head, scales, scales_slot, scales_head = pool_words(rows, rows.rows, heads)
        formats = (shape.head_dim, shape.kind, shape.selector, shape.k_format, shape.v_format, shape.centred)
        self._backend.launch(
            recall_kernel(*formats),
            (-(-(last - first) // BLOCK_TOKENS), heads),
            *(k, v, head_words, shape.n_sinks, wraps_after),
            *(codes.address + 4 * slot * codes_slot, codes_head),
            *(scales.address + 4 * slot * scales_slot, scales_head),
            *(rows.k_grid.address("halves"), rows.v_grid.address("halves")),
            *(rows.selectors.part(slot, 1), rows.selectors.nbytes // 4 // rows.n_slots // heads),
            *(*rows.selector_words, rows.means.part(slot, 1), first, last),
        )

    def _blocks_of(self, span: DeviceArray) -> BlockRows:
        return BlockRows(
            self._k,
            self._v,
            slot_stride=0,
            head_stride=PIECE * self._shape.head_dim,
            n_rows_each=PIECE,
            n_batch=1,
            slots=span.part(0, 1),
            firsts=span.part(1, 1),
            lasts=span.part(2, 1),
            sources=span.part(4, 1),
            n_rows=span.part(5, 1),
        )

    def _staged(self, layer: int) -> KvRows:
        return self._staging[layer % len(self._staging)]

    def _widen(self, rows: YakvRows, staging: KvRows, span: DeviceArray) -> None:
        dim = self._shape.head_dim
        head = rows.n_blocks * dim // 2
        self._backend.launch(
            kernel("yakv_prompt_cuda", "yakv_widen_cuda", dim, self._shape.kind),
            (PIECE // BLOCK_TOKENS, self._heads),
            *(self._k, self._v, PIECE * dim, rows.values, self._heads * head, head),
            *(staging.k, staging.v, staging.head_bytes // 4, span),
            self._shape.n_sinks,
        )

    def _mean_key(self, rows: YakvRows, staging: KvRows) -> None:
        dim = self._shape.head_dim
        self._backend.launch(
            kernel("yakv_prompt_cuda", "yakv_mean_key_cuda", dim, self._shape.kind),
            (self._heads, 1),
            *(rows.means, self._heads * dim, staging.k, staging.head_bytes // 4, self._spans),
            self._shape.n_sinks,
        )

    def _copy(
        self, rows: YakvRows, staging: KvRows, slot: int, first: int, last: int, *, to_ring: bool
    ) -> None:
        """Exact positions between the staged rows and the ring, run by run: it wraps around."""
        shape, words = self._shape, self._shape.head_dim // 2
        ring_len = shape.window + BLOCK_TOKENS
        while first < last:
            place = ring_place(first, shape.n_sinks, shape.n_sinks, ring_len)
            end = shape.n_sinks if first < shape.n_sinks else rows.ring_places
            n = min(last - first, end - place)
            for staged, ring in ((staging.k, rows.ring_k), (staging.v, rows.ring_v)):
                for head in range(self._heads):
                    here = (head * staging.head_bytes // 4 // words) + first
                    there = (slot * self._heads + head) * rows.ring_places + place
                    self._copy_run(staged, ring, words, here, there, n, to_ring)
            first += n

    def _copy_run(
        self, staged: DeviceArray, ring: DeviceArray, words: int, here: int, there: int, n: int, to_ring: bool
    ) -> None:
        held, rows = (x.reshaped((x.nbytes // 4 // words, words)) for x in (staged, ring))
        if to_ring:
            rows.copy_rows(there, held, here, n, self._backend.stream)
        else:
            held.copy_rows(here, rows, there, n, self._backend.stream)
