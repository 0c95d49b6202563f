"""YAKV as its paper has it, on the CPU: readable numpy that really runs in the engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.chosen_rows import attend_rows, group_weights, top
from ..kernels.higgs_code import HiggsCode, side_by_side
from ..kernels.paper_layout import STORE_BLOCK, PaperShape
from ..kernels.rope_table import RopeTable
from .coded_rows import CodedRows
from .exact_rows import ExactRows
from .tiled_rows import TiledRows


@dataclass(frozen=True, slots=True)
class PaperRows:
    """One layer of PaperPools."""

    pools: PaperPools
    layer: int


@dataclass(frozen=True, slots=True)
class _Slot:
    """Codes and exact rows by position. `ends` int64 [L] of the indexed positions of each layer."""

    selectors: CodedRows
    k: CodedRows
    v: CodedRows
    exact: ExactRows
    ends: np.ndarray


class PaperPools:
    """Selector codes and exact rows, K and V codes of all layers. A slot's memory is taken page by page as
    rows are written. wanted: tokens that a step of each slot chooses; places: unused.
    """

    token_axis = 2  # of what state() gives

    def __init__(
        self, sizes: tuple[int, int, int, int], shape: PaperShape, most: tuple[int, int], staging: TiledRows
    ) -> None:
        """sizes, most: as Backend.page_pools(). Raises: ValueError for a head size without a rotation."""
        n_layers, n_slots, n_kv_heads, n_tokens = sizes
        self._heads, self._shape, self._staging = (n_layers, n_kv_heads), shape, staging
        self._slots: dict[int, _Slot] = {}
        self._selector = HiggsCode.of("d4n256", shape.head_dim)
        self._row_code = HiggsCode.of("d2n256", n_kv_heads * shape.head_dim)
        self._rope = RopeTable(np.array(shape.inv_freq), shape.rope_scale, n_tokens)
        self.wanted, self.places = np.zeros((2, n_slots), np.int64)
        self.layers = [PaperRows(self, layer) for layer in range(n_layers)]
        self._counted = np.zeros(6, np.int64)

    def open(self, slot: int, n_tokens: int) -> None:
        n_layers, _ = self._heads
        self._slots[slot] = _Slot(
            CodedRows(self._selector, *self._heads, n_tokens),
            CodedRows(self._row_code, n_layers, 1, n_tokens),
            CodedRows(self._row_code, n_layers, 1, n_tokens),
            ExactRows(*self._heads, n_tokens, self._shape.head_dim, self._shape.kind),
            np.zeros(n_layers, np.int64),
        )

    def release(self, slot: int) -> None:
        del self._slots[slot]

    def store(self, layer: int, slot: int, n_held: int, n: int) -> None:
        """Takes over the exact rows at positions n_held .. n - 1 of the prompt under way: indexes what now
        lies before its last tokens, and keeps the others.
        """
        held, sinks = self._slots[slot], self._shape.n_sinks
        old = int(held.ends[layer])
        end = max(old, self._shape.indexed_end(n))
        for first in range(max(old, sinks), end, STORE_BLOCK):
            self._encode(held, layer, first, min(first + STORE_BLOCK, end))
        for first, last in ((0, min(sinks, end)), (end, n)):
            held.exact.write(layer, first, *self._staging.read(first, last))
        held.ends[layer] = end

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        """Writes the first n_held rows where a prompt's exact rows lie."""
        held = self._slots[slot]
        end = int(held.ends[layer])
        first = min(self._shape.n_sinks, end)
        self._staging.write(0, *held.exact.read(layer, 0, first))
        self._staging.write(first, *self._decoded(held, layer, self._everywhere(first, end)))
        self._staging.write(end, *held.exact.read(layer, end, n_held))

    def settle(self, layer: int, slot: int, n: int) -> None:
        """Behind a cut to n tokens: those that are now among the last ones come from their codes."""
        held = self._slots[slot]
        begin, end = self._shape.indexed_end(n), int(held.ends[layer])
        if begin < end:
            held.exact.write(layer, begin, *self._decoded(held, layer, self._everywhere(begin, min(n, end))))
            held.ends[layer] = begin

    def state(self, slot: int, n_held: int, n_places: int) -> dict[str, np.ndarray]:
        """What n_held tokens of a slot occupy. Shapes: [L, heads, n, ...], ends [L], views."""
        held, first, end = self._slots[slot], self._shape.n_sinks, self._shape.indexed_end(n_held)
        return {
            "exact": held.exact.first(n_held),
            **held.selectors.state("selector", first, end),
            **held.k.state("k", first, end),
            **held.v.state("v", first, end),
            "ends": held.ends,
        }

    def counted(self) -> list[int]:
        """As PagePools.counted(), and how many tokens' rows were read from codes."""
        counted: list[int] = self._counted.tolist()
        return counted

    def attend(
        self,
        layer: int,
        slot: int,
        position: int,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        by: np.ndarray,
    ) -> np.ndarray:
        """Takes in one token and attends. Shapes: q and by [H, G, D], k and v [H, D] -> [H, G, D]."""
        held, n_heads = self._slots[slot], len(q)
        end = int(held.ends[layer])
        held.exact.write(layer, position, k[:, None], v[:, None])
        first = min(self._shape.n_sinks, end)
        parts = [held.exact.read(layer, 0, first), held.exact.read(layer, end, position + 1)]
        count, n_coded = min(int(self.wanted[slot]), end - first), 0
        if count:
            scaled = held.selectors.dots(layer, by, first, end) * np.float32(self._shape.head_dim**-0.5)
            chosen = first + top(group_weights(scaled, self._shape.rule), count)
            parts.append(self._decoded(held, layer, chosen))
            n_coded = len(np.unique(chosen))
        keys, values = (np.concatenate(rows, axis=1) for rows in zip(*parts, strict=True))
        n_read = n_heads * keys.shape[1]
        self._counted += np.array([n_read, n_heads * count, 0, 1, position + 1, n_coded])
        return attend_rows(q, keys, values)

    def _encode(self, held: _Slot, layer: int, first: int, last: int) -> None:
        """Indexes the tokens at positions first to last - 1 of the prompt under way."""
        k, v = self._staging.read(first, last)
        held.selectors.write(layer, first, k)
        held.k.write(layer, first, side_by_side(self._rope.unrotate(k, first))[None])
        held.v.write(layer, first, side_by_side(v)[None])

    def _decoded(self, held: _Slot, layer: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """K after RoPE and V of indexed tokens. Shapes: positions [Hk, n] -> [Hk, n, D]."""
        dim = self._shape.head_dim
        columns = [slice(head * dim, (head + 1) * dim) for head in range(len(positions))]
        k, v = (
            np.stack([rows.take(layer, 0, *of_head) for of_head in zip(positions, columns, strict=True)])
            for rows in (held.k, held.v)
        )
        return self._rope.rotate(k, positions), v

    def _everywhere(self, first: int, last: int) -> np.ndarray:
        """The same positions for all heads."""
        return np.broadcast_to(np.arange(first, last), (self._heads[1], last - first))
