"""Rows of which a step reads the best chunks, on the CPU: readable numpy that really runs in the engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.chosen_rows import attend_rows, group_weights, logits, page_rows, replace_missing, top
from ..kernels.chunk_layout import ChunkShape
from ..kernels.low_rank_chunks import LowRankChunks, chunks_below
from ..kernels.low_rank_keys import LowRankKeys, low_rank_keys_ref
from ..ops import element_type
from .exact_rows import ExactRows
from .memory import reserved
from .tiled_rows import TiledRows

NO_LOGIT = np.float32(-1e30)


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """One layer of ChunkPools."""

    pools: ChunkPools
    layer: int


@dataclass(frozen=True, slots=True)
class _Slot:
    """Shapes: left [L, tokens, rank], basis [L, Hk, rank, D], landmarks [L, Hk, chunks, D] of chunks that can
    be chosen, numbers int32 [L, Hk, chunks] of these; n_others int32 [L, Hk], how many there are, n_chunks
    int32 [L] with the outliers; recalled int64 [L, Hk, places]: which of them lie in the cache, -1: none.
    """

    rows: ExactRows
    outliers: ExactRows
    left: np.ndarray
    basis: np.ndarray
    landmarks: np.ndarray
    numbers: np.ndarray
    n_others: np.ndarray
    n_chunks: np.ndarray
    cache: ExactRows
    recalled: np.ndarray


class ChunkPools:
    """The rows of all layers, and what is kept of them on the device. A slot's memory is taken page by page
    as rows are written. Of each slot, wanted: chunks that a step asks for; places: of the cache, in use.
    """

    token_axis = 2  # of what state() gives

    def __init__(
        self, sizes: tuple[int, int, int, int], shape: ChunkShape, most: tuple[int, int], staging: TiledRows
    ) -> None:
        """sizes, most: as Backend.page_pools()."""
        n_layers, n_slots, n_kv_heads, n_tokens = sizes
        self._heads, self._shape, self._staging = (n_layers, n_kv_heads), shape, staging
        self._slots: dict[int, _Slot] = {}
        _, self._most_places = most
        self._rope = shape.rope(n_tokens)
        self.wanted, self.places = np.zeros((2, n_slots), np.int64)
        self.layers = [ChunkRows(self, layer) for layer in range(n_layers)]
        self._counted = np.zeros(5, np.int64)

    def open(self, slot: int, n_tokens: int) -> None:
        shape, (n_layers, n_heads), bf16 = self._shape, self._heads, element_type("bf16")
        most, dtype, exact = (
            shape.most_chunks(n_tokens),
            element_type(shape.kind),
            (shape.head_dim, shape.kind),
        )
        landmarks = reserved((*self._heads, most, shape.head_dim * dtype.itemsize))
        self._slots[slot] = _Slot(
            ExactRows(*self._heads, n_tokens, *exact),
            ExactRows(*self._heads, shape.outlier_chunks(most) * shape.page, *exact),
            reserved((n_layers, n_tokens, 2 * shape.rank)).view(bf16),
            np.zeros((*self._heads, shape.rank, shape.head_dim), bf16),
            landmarks.view(dtype),
            np.zeros((*self._heads, most), np.int32),
            np.zeros((n_layers, n_heads), np.int32),
            np.zeros(n_layers, np.int32),
            ExactRows(*self._heads, self._most_places * shape.page, *exact),
            np.full((*self._heads, self._most_places), -1, np.int64),
        )

    def release(self, slot: int) -> None:
        del self._slots[slot]

    def store(self, layer: int, slot: int, n_held: int, n: int) -> None:
        """Takes over the exact rows at positions n_held .. n - 1 of the prompt under way, and makes all else
        anew from the rows of all n tokens.
        """
        held = self._slots[slot]
        held.rows.write(layer, n_held, *self._staging.read(n_held, n))
        k, _ = held.rows.read(layer, 0, n)
        made = LowRankChunks.of(k, self._shape, self._rope)
        held.n_others[layer], held.n_chunks[layer] = 0, 0  # until all is there
        held.left[layer, : len(made.keys.left)], held.basis[layer] = made.keys.left, made.keys.basis
        n_others = made.numbers.shape[1]
        held.landmarks[layer, :, :n_others] = made.landmarks
        held.numbers[layer, :, :n_others], held.numbers[layer, :, n_others:] = made.numbers, 0
        outliers = held.rows.take(layer, page_rows(made.outliers, self._shape.page))
        held.outliers.write(layer, 0, *outliers)
        held.recalled[layer] = -1
        held.n_others[layer], held.n_chunks[layer] = n_others, made.n_chunks

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        """Writes the first n_held rows where a prompt's exact rows lie."""
        self._staging.write(0, *self._slots[slot].rows.read(layer, 0, n_held))

    def settle(self, layer: int, slot: int, n: int) -> None:
        """Forgets the chunks that n tokens have no longer in front of the tail, and empties the cache."""
        held = self._slots[slot]
        end = min(int(held.n_chunks[layer]), self._shape.chunks(n))
        ends = np.full(self._heads[1], end)
        below, n_others = chunks_below(held.numbers[layer], held.n_others[layer], ends)
        held.n_others[layer], held.n_chunks[layer] = n_others, end
        held.numbers[layer] = below
        held.recalled[layer] = -1

    def state(self, slot: int, n_held: int, n_places: int) -> dict[str, np.ndarray]:
        """What n_held tokens of a slot occupy, with so many places of a cache. Shapes: rows [L, Hk, n,
        numbers], others as in _Slot, views.
        """
        held, shape = self._slots[slot], self._shape
        full = n_held // shape.page
        return {
            "rows": held.rows.first(n_held),
            "outliers": held.outliers.first(shape.outlier_chunks(full) * shape.page),
            "left": held.left[:, :n_held],
            "basis": held.basis,
            "landmarks": held.landmarks[:, :, :full],
            "numbers": held.numbers[:, :, :full],
            "n_others": held.n_others,
            "n_chunks": held.n_chunks,
            "cache": held.cache.first(n_places * shape.page),
            "recalled": held.recalled[:, :, :n_places],
        }

    def counted(self) -> list[int]:
        """Since the start, over all layers: rows of all heads that were read, how many rows were asked for,
        and how many of these were in the cache; tokens taken in, and the lengths of their histories.
        """
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
        held, page, n = self._slots[slot], self._shape.page, position + 1
        held.rows.write(layer, position, k[:, None], v[:, None])
        n_chunks, n_others = int(held.n_chunks[layer]), held.n_others[layer]
        n_outliers = np.clip(n_chunks - n_others, 0, self._shape.outlier_chunks(n_chunks))
        n_chosen, n_fresh = self._recall(held, layer, slot, by)
        filled = held.recalled[layer, :, : self.places[slot]] >= 0
        filled = filled[:, : filled.sum(axis=1).max()]  # places fill from the first
        parts = (
            held.rows.read(layer, n_chunks * page, n),
            held.outliers.read(layer, 0, n_outliers.max() * page),
            held.cache.read(layer, 0, filled.shape[1] * page),
        )
        chunks = np.concatenate([np.arange(n_outliers.max()) < n_outliers[:, None], filled], axis=1)
        tail = np.ones((len(q), parts[0][0].shape[1]), bool)
        readable = np.concatenate([tail, np.repeat(chunks, page, axis=1)], axis=1)
        asked, hits = n_chosen * page, (n_chosen - n_fresh) * page
        self._counted += np.array([np.count_nonzero(readable), asked, hits, 1, n])
        keys, values = (np.concatenate(pair, axis=1) for pair in zip(*parts, strict=True))
        return attend_rows(q, keys, values, readable)

    def _recall(self, held: _Slot, layer: int, slot: int, q: np.ndarray) -> tuple[int, int]:
        """Brings the best chunks into the cache, in place of those that are not among them. Returns: how many
        there are of all heads, and how many of them came.
        """
        n_places, n_others, n_fresh = int(self.places[slot]), held.n_others[layer], 0
        budgets = np.minimum(n_others, min(int(self.wanted[slot]), n_places))
        if not budgets.any():
            return 0, 0
        landmarks = held.landmarks[layer, :, : n_others.max()]
        absent = np.arange(landmarks.shape[1]) >= n_others[:, None]
        scaled = logits(q, landmarks) * np.float32(self._shape.head_dim**-0.5)
        weights = group_weights(np.where(absent[:, None], NO_LOGIT, scaled), self._shape.rule)
        for budget in np.unique(budgets[budgets > 0]):  # one, until a cut
            heads = np.flatnonzero(budgets == budget)
            recalled = held.recalled[layer, heads, :n_places]
            chosen = top(weights[heads], int(budget))
            of_heads, places, chunks = replace_missing(recalled, chosen, held.landmarks.shape[2])
            held.recalled[layer, heads, :n_places] = recalled
            self._fetch(held, layer, heads[of_heads], places, chunks)
            n_fresh += len(chunks)
        return int(budgets.sum()), n_fresh

    def _fetch(
        self, held: _Slot, layer: int, heads: np.ndarray, places: np.ndarray, chunks: np.ndarray
    ) -> None:
        """Computes keys and copies values of chunks that can be chosen. Shapes: [n], in order of heads."""
        page = self._shape.page
        positions = page_rows(held.numbers[layer, heads, chunks], page)
        heads, places = np.repeat(heads, page), page_rows(places, page)
        keys = low_rank_keys_ref(
            LowRankKeys(held.left[layer], held.basis[layer]), self._rope, heads, positions
        )
        held.cache.values_from(layer, heads, places, keys, held.rows, positions)
