"""Methods that read whole pages, or single tokens, of the best scores: what rests on the host and on the
device are pools of the backend, whose form a shape tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels.page_layout import PageShape, PromptProxies
from ..kernels.pool_shapes import PoolShape
from ..ops import ELEMENT_BYTES, Buffer, KvRows, Ops
from .contract import AttentionInput, KvSetting, Pools, StateArray, TokenRows
from .counters import Counters, method_stats
from .dense_layers import DenseLayers
from .prompt_queries import PromptQueries
from .slots import SlotList
from .staging import Staging


@dataclass(frozen=True, slots=True)
class PagedMethod:
    """One of them. wanted: pages that a step asks for, of a prompt of so many tokens; places: of a cache of
    pages, 0: none. Neither falls as the prompt grows. pools: of a slot; row_bytes: what the link carries for
    a row, of which row_heads heads have a part each. dense_on_host: the rows of dense layers count as
    fetched. asks: records the queries that choose a layer's pages, if not its own; tells: of the queries
    [Hq, n, D] of a slot's first prompt, and of what reads its keys [Hk, n, D], how these become proxies.
    """

    name: str
    shape: PoolShape
    dense_layers: int
    wanted: Callable[[int], int]
    places: Callable[[int], int]
    pools: Pools
    device_bytes_per_token: float
    host_bytes_per_token: float
    row_bytes: int
    row_heads: int = 1
    dense_on_host: bool = False
    asks: Callable[[Ops, int, AttentionInput], Buffer] | None = None
    tells: Callable[[np.ndarray, Callable[[], np.ndarray]], PromptProxies] | None = None


def page_shape(setting: KvSetting, **how: Any) -> PageShape:
    """Of the model's heads, where those of a group choose together; `how`: the other fields."""
    group = setting.config.n_heads // setting.config.n_kv_heads
    shape: dict[str, Any] = {"group": group, "head_dim": setting.config.head_dim, "kind": setting.kind}
    return PageShape(**shape | how)


def row_bytes(setting: KvSetting) -> int:
    """Of a key and its value."""
    return 2 * setting.config.head_dim * ELEMENT_BYTES[setting.kind]


class PagedKv:
    """contract.KvMethod. Of a PageShape generated tokens join the pages, and a page can be chosen when it has
    left the window; of the other forms they are read always. The budget of a slot is that of the prompt which
    came last.
    """

    def __init__(self, setting: KvSetting, method: PagedMethod) -> None:
        config = setting.config
        self._setting, self._method = setting, method
        self._free, self._staging = SlotList(setting), Staging(setting)
        self._counters = Counters(config.n_layers)  # of a model that is dense in all layers
        self._dense = DenseLayers(setting, method.dense_layers, self._counters, on_host=method.dense_on_host)
        self._queries = PromptQueries(setting) if method.tells else None
        self._pools = setting.backend.page_pools(
            (config.n_layers - self._dense.n, setting.n_slots, config.n_kv_heads, setting.ctx_size),
            method.shape,
            (method.wanted(setting.ctx_size), self._held_places(setting.ctx_size)),
            self._staging.rows,
        )

    def open(self, n_tokens: int) -> int:
        slot = self._free.take(n_tokens)
        self._pools.open(slot, n_tokens)
        self._set_budgets(slot, 0)
        return slot

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        if layer >= self._dense.n:
            self._pools.restore(layer - self._dense.n, slot, n_held)

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        if layer < self._dense.n:
            return self._dense.prefill(ops, layer, attention)
        if self._queries:
            self._queries.record(ops, attention)
        ops.kv_append(self._staging.rows, attention.k, attention.v)
        return self._staging.rows

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        if layer < self._dense.n:
            return
        n, told = n_held + n_new, list[PromptProxies]()
        if self._queries and self._method.tells and not n_held:
            told.append(self._method.tells(self._queries.read(0, n), lambda: self._staging.read(0, n)[0]))
        self._set_budgets(slot, n)
        self._pools.store(layer - self._dense.n, slot, n_held, n, *told)

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        by = self._method.asks(ops, layer, attention) if self._method.asks else attention.q
        if layer < self._dense.n:
            self._dense.decode(ops, layer, attention, out)
            if not self._pools.layers:
                self._dense.count(ops, layer)
        else:
            rows = self._pools.layers[layer - self._dense.n]
            ops.attend_pages(out, attention.q, attention.k, attention.v, by, rows)

    def truncate(self, slot: int, n_held: int, n: int) -> int:
        for layer in range(len(self._pools.layers)):
            self._pools.settle(layer, slot, n)
        for _, held, of_prompt in self._budgets():
            held[slot] = min(held[slot], of_prompt(n))
        return n

    def state(self, slot: int, n_held: int) -> Mapping[str, StateArray]:
        pools, shape = self._pools, self._method.shape
        limits, axis = shape.limits(n_held), pools.token_axis
        rows = {name: TokenRows(axis, *divided) for name, divided in shape.by_token.items()}
        found = self._dense.state(slot, n_held)
        for name, values in pools.state(slot, n_held, self._held_places(n_held)).items():
            of = name.partition(".")[0]
            found[name] = StateArray(values, limits.get(of), rows.get(of))
        for name, held, of_prompt in self._budgets():
            found[name] = StateArray(held[slot : slot + 1], (of_prompt(0), of_prompt(n_held)))
        return found

    def release(self, slot: int) -> None:
        self._pools.release(slot)
        self._free.give_back(slot)

    def stats(self) -> Mapping[str, float | str]:
        setting, method = self._setting, self._method
        return method_stats(
            method.name,
            setting,
            method.pools,
            self._counted(),
            method.device_bytes_per_token,
            method.host_bytes_per_token,
        )

    def _counted(self) -> Counters:
        config, n_layers = self._setting.config, len(self._pools.layers)
        if not n_layers:
            return self._counters
        read, asked, hits, tokens, lengths, *carried = self._pools.counted()
        dense = self._dense.n * config.n_kv_heads * lengths // n_layers
        if self._method.dense_on_host:
            asked += self._dense.n * config.n_kv_heads * (lengths - tokens) // n_layers
        row, gross = self._method.row_bytes, asked // self._method.row_heads
        moved = carried[0] if carried else gross - hits  # rows that several heads chose come once
        totals = read + dense, asked, hits, gross * row, moved * row
        return Counters(config.n_layers, tokens // n_layers, *totals)

    def _budgets(self) -> tuple[tuple[str, np.ndarray, Callable[[int], int]], ...]:
        """Numbers of all slots, and what they are for a prompt of so many tokens."""
        pools, method = self._pools, self._method
        return ("wanted", pools.wanted, method.wanted), ("places", pools.places, method.places)

    def _set_budgets(self, slot: int, n: int) -> None:
        """Those of a prompt of n tokens."""
        for _, held, of_prompt in self._budgets():
            held[slot] = of_prompt(n)

    def _held_places(self, n: int) -> int:
        """Of a cache, that n tokens can fill."""
        return min(self._method.places(n), -(-n // self._method.shape.page))
