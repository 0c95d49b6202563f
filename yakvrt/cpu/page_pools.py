"""Rows of which a step reads the best pages, on the CPU: readable numpy that really runs in the engine."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.chosen_rows import (
    attend_rows,
    group_weights,
    logits,
    page_rows,
    page_scores,
    replace_missing,
    top,
)
from ..kernels.factor_descend import factor_descend_ref
from ..kernels.factor_resident import factor_resident_ref
from ..kernels.factor_solve import factor_solve_ref
from ..kernels.key_factors import project
from ..kernels.page_digests import page_digests_ref
from ..kernels.page_layout import PageShape, PromptProxies, chosen_end
from ..kernels.page_project import page_near_ref
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
    """Of the heads that choose, Hc, proxies [L, Hc, pages, proxy width]; basis float32 [L, Hc, ...], which
    turns keys into them; recalled int64 [L, Hc, places]: the pages whose rows lie in the cache, -1: none.
    """

    rows: ExactRows
    ring: ExactRows
    proxies: np.ndarray
    basis: np.ndarray
    cache: ExactRows
    recalled: np.ndarray


class PagePools:
    """The rows of all layers, and what is kept of them on the device. A slot's memory is taken page by page
    as rows are written. Of each slot, wanted: pages that a step asks for; places: of the cache, in use.
    """

    token_axis = 2  # of what state() gives

    def __init__(
        self, sizes: tuple[int, int, int, int], shape: PageShape, most: tuple[int, int], staging: TiledRows
    ) -> None:
        """sizes, most: as Backend.page_pools()."""
        n_layers, n_slots, n_kv_heads, _ = sizes
        self._heads, self._shape, self._staging = (n_layers, n_kv_heads), shape, staging
        self._choosing = n_layers, n_kv_heads * shape.sharing
        self._slots: dict[int, _Slot] = {}
        _, self._most_places = most
        self.wanted, self.places = np.zeros((2, n_slots), np.int64)
        self.layers = [PageRows(self, layer) for layer in range(n_layers)]
        self._counted = np.zeros(5, np.int64)

    def open(self, slot: int, n_tokens: int) -> None:
        shape, dtype = self._shape, element_type(self._shape.proxy_kind)
        proxies = reserved((*self._choosing, n_tokens // shape.page, shape.proxy_width * dtype.itemsize))
        self._slots[slot] = _Slot(
            ExactRows(*self._heads, n_tokens, shape.head_dim, shape.kind),
            ExactRows(*self._heads, shape.ring_places, shape.head_dim, shape.kind),
            proxies.view(dtype),
            np.zeros((*self._choosing, *shape.basis_shape), np.float32),
            ExactRows(*self._choosing, self._most_places * shape.page, shape.head_dim, shape.kind),
            np.full((*self._choosing, self._most_places), -1, np.int64),
        )

    def release(self, slot: int) -> None:
        del self._slots[slot]

    def store(self, layer: int, slot: int, n_held: int, n: int, told: PromptProxies | None = None) -> None:
        """Takes over the exact rows at positions n_held .. n - 1 of the prompt under way."""
        held, page = self._slots[slot], self._shape.page
        held.rows.write(layer, n_held, *self._staging.read(n_held, n))
        if told:
            held.basis[layer] = told.basis
        if told and told.proxies is not None:
            held.proxies[layer, :, :n] = told.proxies
        else:
            self._describe(held, layer, n_held // page, n // page)
        self.settle(layer, slot, n)
        if told and told.asking is not None:
            weights, n_near = self._weights(held, layer, told.asking, n)
            self._recall(held, layer, slot, self._best(slot, weights, n_near), weights)

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        """Writes the first n_held rows where a prompt's exact rows lie."""
        self._staging.write(0, *self._slots[slot].rows.read(layer, 0, n_held))

    def settle(self, layer: int, slot: int, n: int) -> None:
        """Loads the first and last of n tokens into the ring, and empties the cache."""
        held, shape, n_heads = self._slots[slot], self._shape, self._heads[1]
        sinks = min(shape.n_sinks, n)
        positions = np.concatenate([np.arange(sinks), np.arange(max(sinks, n - shape.ring_len), n)])
        heads = np.repeat(np.arange(n_heads), len(positions))
        positions = np.tile(positions, n_heads)
        held.ring.copy_from(layer, heads, self._places(positions), held.rows, positions)
        held.recalled[layer] = -1

    def state(self, slot: int, n_held: int, n_places: int) -> dict[str, np.ndarray]:
        """What n_held tokens of a slot occupy, with so many places of a cache. Shapes: [L, Hk, n, numbers],
        recalled [L, Hk, n], views.
        """
        held, shape = self._slots[slot], self._shape
        found = {"rows": held.rows.first(n_held), "ring": held.ring.first(shape.ring_places)}
        if shape.proxy_width:
            found["proxies"] = held.proxies[:, :, : n_held // shape.page]
        if shape.n_channels:
            found["basis"] = held.basis
        if self._most_places:
            found["cache"] = held.cache.first(n_places * shape.page)
            found["recalled"] = held.recalled[:, :, :n_places]
        return found

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
        """Takes in one token and attends. Shapes: q and by [H, G, D], k and v [H, D] -> [H * G, D]."""
        held, shape, n = self._slots[slot], self._shape, position + 1
        held.rows.write(layer, position, k[:, None], v[:, None])
        held.ring.write(layer, int(self._places(np.array([position]))[0]), k[:, None], v[:, None])
        sinks, end = shape.n_sinks, chosen_end(n, shape.n_sinks, shape.window, shape.page)
        lasting = np.concatenate([np.arange(min(sinks, n)), np.arange(end, n)])
        resident = self._resident(held, layer, lasting)
        q = q.reshape(-1, shape.group, shape.head_dim)
        if shape.proxy == "channels":
            by = by @ held.basis[layer]
        elif shape.proxy == "factors":
            by = self._fit(held, layer, position, q, k)
        weights, n_near = self._weights(held, layer, by, n)
        chosen = self._best(slot, weights, n_near)
        n_fresh = chosen.size
        if self._most_places:
            n_fresh = self._recall(held, layer, slot, chosen, weights)
            recalled = held.recalled[layer, :, : self.places[slot]]
            recalled = recalled[:, : (recalled >= 0).sum(axis=1).max()]  # places fill from the first
            filled = np.repeat(recalled >= 0, shape.page, axis=1)
            places = page_rows(np.arange(recalled.shape[1]), shape.page)
            more = held.cache.take(layer, np.broadcast_to(places, filled.shape))
        else:
            more = held.rows.take(layer, sinks + page_rows(chosen, shape.page))
            filled = np.ones(more[0].shape[:2], bool)
        if n % shape.page == 0 and shape.proxy != "factors":
            self._describe(held, layer, position // shape.page, n // shape.page)
        readable = np.concatenate([np.ones((len(q), len(lasting)), bool), filled], axis=1)
        asked, hits = chosen.size * shape.page, (chosen.size - n_fresh) * shape.page
        self._counted += np.array([np.count_nonzero(readable), asked, hits, 1, n])
        keys, values = (np.concatenate(pair, axis=1) for pair in zip(resident, more, strict=True))
        return attend_rows(q, keys, values, readable)

    def _resident(self, held: _Slot, layer: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of positions in the ring, for every head that chooses."""
        places = np.broadcast_to(self._places(positions), (self._heads[1], len(positions)))
        k, v = (np.repeat(rows, self._shape.sharing, axis=0) for rows in held.ring.take(layer, places))
        return k, v

    def _fit(self, held: _Slot, layer: int, position: int, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Gives a key its proxy, and a query its own, which is returned, by what is on the device; the
        factors follow. Shapes: q [Hc, 1, D], k [H, D] -> [Hc, 1, rank].
        """
        filled = int((held.recalled[layer, 0] >= 0).sum())  # places fill alike, from the first
        past = np.arange(max(0, position + 1 - self._shape.ring_len), position)
        known = np.broadcast_to(past, (len(q), len(past)))
        ids = np.concatenate([held.recalled[layer, :, :filled], known], axis=1)
        proxies = held.proxies[layer, np.arange(len(q))[:, None], ids].astype(np.float32)
        keys = [held.cache.read(layer, 0, filled)[0], self._resident(held, layer, past)[0]]
        key = np.repeat(k[:, None], self._shape.sharing, axis=0)
        b_q, b_k = held.basis[layer].swapaxes(0, 1)
        fitted = factor_resident_ref(q, b_q, np.concatenate(keys, axis=1), proxies)
        q_hat, k_hat = factor_solve_ref(*fitted, q, key, b_k)
        b_q[...], b_k[...] = factor_descend_ref(b_q, q_hat, q), factor_descend_ref(b_k, k_hat, key)
        held.proxies[layer, :, position] = k_hat[:, 0]
        return q_hat

    def _best(self, slot: int, weights: np.ndarray, n_near: int) -> np.ndarray:
        """The pages that a step chooses."""
        most = int(self.wanted[slot])
        if self._most_places:
            most = min(most, int(self.places[slot]))
        return top(weights, min(most, n_near))

    def _weights(self, held: _Slot, layer: int, q: np.ndarray, n: int) -> tuple[np.ndarray, int]:
        """What the pages that can be chosen are ranked by, and how many are worth it. Shapes: q as proxies
        are [Hc, G, ...] -> [Hc, pages].
        """
        shape = self._shape
        end = chosen_end(n, shape.n_sinks, shape.window, shape.page)
        pages = slice(shape.n_sinks // shape.page, end // shape.page)
        if end == shape.n_sinks:
            return np.zeros((len(q), 0), np.float32), 0
        scale = np.float32(shape.head_dim**-0.5)
        if shape.proxy == "key":
            weights = group_weights(logits(q, held.rows.keys(layer, n)) * scale, shape.rule)[:, pages]
            return weights, weights.shape[1]
        proxies = held.proxies[layer, :, pages]
        scaled = page_scores(q, proxies) if shape.has_boxes else logits(q, proxies)
        scaled *= scale
        n_near = scaled.shape[2]
        if shape.alpha < inf:
            n_near = page_near_ref(scaled.reshape(-1, n_near), shape.alpha)
        return group_weights(scaled, shape.rule), n_near

    def _recall(self, held: _Slot, layer: int, slot: int, chosen: np.ndarray, weights: np.ndarray) -> int:
        """Brings chosen pages into the cache, in place of those of least weight. Returns: how many."""
        page, recalled = self._shape.page, held.recalled[layer, :, : self.places[slot]]
        if not chosen.size:
            return 0
        keep = np.take_along_axis(weights, np.maximum(recalled, 0), axis=1)
        heads, places, pages = replace_missing(recalled, chosen, weights.shape[1], keep)
        source = self._shape.n_sinks + page_rows(pages, page)
        held.cache.copy_from(layer, np.repeat(heads, page), page_rows(places, page), held.rows, source)
        return len(pages)

    def _places(self, positions: np.ndarray) -> np.ndarray:
        """Where they lie in the ring."""
        sinks = self._shape.n_sinks
        return np.where(positions < sinks, positions, sinks + (positions - sinks) % self._shape.ring_len)

    def _describe(self, held: _Slot, layer: int, first: int, last: int) -> None:
        """Makes what stands for pages first to last - 1."""
        shape = self._shape
        if not shape.proxy_width:
            return
        k, _ = held.rows.read(layer, first * shape.page, last * shape.page)
        if shape.has_boxes:
            made = page_digests_ref(k, shape.page, centred=shape.proxy == "centred")
        elif shape.proxy == "channels":
            made = k @ held.basis[layer]
        else:
            made = project(np.repeat(k, shape.sharing, axis=0), held.basis[layer, :, 1])
        held.proxies[layer, :, first:last] = made


def record_pages(
    recorder: Recorder, out: Buffer, q: Buffer, k: Buffer, v: Buffer, by: Buffer, rows: PageRows
) -> None:
    """See Ops.attend_pages."""
    batch, heads, dim = recorder.batch, recorder.n_kv_heads, recorder.head_dim
    recorder.memory.write_shared(out)

    def run() -> None:
        n = int(batch.n_rows[0])
        queries, asking = (recorder.read(x, n).reshape(n, heads, -1, dim) for x in (q, by))
        keys, values = (recorder.read(x, n).reshape(n, heads, dim) for x in (k, v))
        found = np.empty((n, q.width), np.float32)
        for row in range(n):
            slot, position = int(batch.slots[row]), int(batch.positions[row])
            given = queries[row], keys[row], values[row], asking[row]
            found[row] = rows.pools.attend(rows.layer, slot, position, *given).reshape(-1)
        recorder.write(out, found)

    recorder.call(run)
