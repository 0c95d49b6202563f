"""Rows of which a step reads the best pages, on the CPU: readable numpy that really runs in the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.chosen_rows import attend_rows, group_weights, logits, page_rows, page_scores, top
from ..kernels.page_digests import page_digests_ref
from ..kernels.page_layout import PageShape, chosen_end
from ..ops import Buffer, element_type
from .exact_rows import ExactRows
from .memory import reserved
from .tiled_rows import TiledRows

if TYPE_CHECKING:
    from .recorder import Recorder


@dataclass(frozen=True, slots=True)
class PageRows:
    """One layer of PagePools."""

    pools: PagePools
    layer: int


@dataclass(frozen=True, slots=True)
class _Slot:
    rows: ExactRows
    ring: ExactRows
    digests: np.ndarray


class PagePools:
    """The rows of all layers, and what is kept of them on the device. A slot's memory is taken page by page
    as rows are written. wanted: pages that a step of each slot reads.
    """

    token_axis = 2  # of what state() gives

    def __init__(
        self, n_layers: int, n_slots: int, n_kv_heads: int, shape: PageShape, staging: TiledRows
    ) -> None:
        self._heads, self._shape, self._staging = (n_layers, n_kv_heads), shape, staging
        self._slots: dict[int, _Slot] = {}
        self.wanted = np.zeros(n_slots, np.int64)
        self.layers = [PageRows(self, layer) for layer in range(n_layers)]
        self._counted = np.zeros(4, np.int64)

    def open(self, slot: int, n_tokens: int) -> None:
        shape, dtype = self._shape, element_type(self._shape.kind)
        n_pages = max(1, n_tokens // shape.page)
        digests = reserved((*self._heads, n_pages, 2 * shape.head_dim * dtype.itemsize)).view(dtype)
        self._slots[slot] = _Slot(
            ExactRows(*self._heads, n_tokens, shape.head_dim, shape.kind),
            ExactRows(*self._heads, shape.ring_places, shape.head_dim, shape.kind),
            digests,
        )

    def release(self, slot: int) -> None:
        del self._slots[slot]

    def store(self, layer: int, slot: int, n_held: int, n: int) -> None:
        """Takes over the exact rows at positions n_held .. n - 1 of the prompt under way."""
        held, page = self._slots[slot], self._shape.page
        held.rows.write(layer, n_held, *self._staging.read(n_held, n))
        self._digest(held, layer, n_held // page, n // page)
        self.settle(layer, slot, n)

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        """Writes the first n_held rows where a prompt's exact rows lie."""
        self._staging.write(0, *self._slots[slot].rows.read(layer, 0, n_held))

    def settle(self, layer: int, slot: int, n: int) -> None:
        """Loads the first and last of n tokens into the ring."""
        held, shape, n_heads = self._slots[slot], self._shape, self._heads[1]
        sinks = min(shape.n_sinks, n)
        positions = np.concatenate([np.arange(sinks), np.arange(max(sinks, n - shape.ring_len), n)])
        heads = np.repeat(np.arange(n_heads), len(positions))
        positions = np.tile(positions, n_heads)
        held.ring.copy_from(layer, heads, self._places(positions), held.rows, positions)

    def state(self, slot: int, n_held: int) -> dict[str, np.ndarray]:
        """What n_held tokens of a slot occupy. Shapes: [L, Hk, n, numbers], views."""
        held, shape = self._slots[slot], self._shape
        found = {"rows": held.rows.first(n_held), "ring": held.ring.first(shape.ring_places)}
        return {**found, **({"digests": held.digests[:, :, : n_held // shape.page]} if shape.boxes else {})}

    def counted(self) -> list[int]:
        """Since the start, over all layers: rows of all heads that were read, how many of them were chosen;
        tokens taken in, and the lengths of their histories.
        """
        counted: list[int] = self._counted.tolist()
        return counted

    def attend(
        self, layer: int, slot: int, position: int, q: np.ndarray, k: np.ndarray, v: np.ndarray
    ) -> np.ndarray:
        """Takes in one token and attends. Shapes: q [H, G, D], k and v [H, D] -> [H, G, D]."""
        held, shape, n = self._slots[slot], self._shape, position + 1
        held.rows.write(layer, position, k[:, None], v[:, None])
        held.ring.write(layer, int(self._places(np.array([position]))[0]), k[:, None], v[:, None])
        sinks, end = shape.n_sinks, chosen_end(n, shape.n_sinks, shape.window, shape.page)
        lasting = self._places(np.concatenate([np.arange(min(sinks, n)), np.arange(end, n)]))
        keys, values = held.ring.take(layer, np.broadcast_to(lasting, (len(q), len(lasting))))
        first, last = sinks // shape.page, end // shape.page
        n_pages = min(int(self.wanted[slot]), last - first)
        if n_pages:
            scaled = self._scores(held, layer, first, last, q, n) * np.float32(q.shape[-1] ** -0.5)
            weights = group_weights(scaled, shape.rule)
            chosen = first + top(weights if shape.boxes else weights[:, first:last], n_pages)
            fetched = held.rows.take(layer, page_rows(chosen, shape.page))
            keys = np.concatenate([keys, fetched[0]], axis=1)
            values = np.concatenate([values, fetched[1]], axis=1)
        if n % shape.page == 0:
            self._digest(held, layer, position // shape.page, n // shape.page)
        self._counted += len(q) * keys.shape[1], len(q) * n_pages * shape.page, 1, n
        return attend_rows(q, keys, values)

    def _scores(self, held: _Slot, layer: int, first: int, last: int, q: np.ndarray, n: int) -> np.ndarray:
        if self._shape.boxes:
            return page_scores(q, held.digests[layer, :, first:last])
        return logits(q, held.rows.keys(layer, n))

    def _places(self, positions: np.ndarray) -> np.ndarray:
        """Where they lie in the ring."""
        sinks = self._shape.n_sinks
        return np.where(positions < sinks, positions, sinks + (positions - sinks) % self._shape.ring_len)

    def _digest(self, held: _Slot, layer: int, first: int, last: int) -> None:
        """Of pages first to last - 1."""
        if self._shape.boxes:
            page, centred = self._shape.page, self._shape.boxes == "centred"
            k, _ = held.rows.read(layer, first * page, last * page)
            held.digests[layer, :, first:last] = page_digests_ref(k, page, centred=centred)


def record_pages(recorder: Recorder, out: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: PageRows) -> None:
    """See Ops.attend_pages."""
    batch, heads, dim = recorder.batch, recorder.n_kv_heads, recorder.head_dim

    def run() -> None:
        n = int(batch.n_rows[0])
        queries = recorder.read(q, n).reshape(n, heads, -1, dim)
        keys, values = (recorder.read(x, n).reshape(n, heads, dim) for x in (k, v))
        found = np.empty((n, q.width), np.float32)
        for row in range(n):
            slot, position = int(batch.slots[row]), int(batch.positions[row])
            attended = rows.pools.attend(rows.layer, slot, position, queries[row], keys[row], values[row])
            found[row] = attended.reshape(-1)
        recorder.write(out, found)

    recorder.call(run)
