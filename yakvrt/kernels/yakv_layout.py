"""Where YAKV keeps the rows of a slot, as plain functions of lengths, and how kernels find the pools.

Positions of a slot that holds n tokens: sinks [0, n_sinks) and the recent window are exact and lie in a ring;
between them whole blocks of 64 tokens are indexed, [n_sinks, indexed_end(n)). A block leaves the window when
it is complete, so the window holds `window` to window + 63 tokens, one more while a step runs.

Ring of one head: the sinks, padded to 16, then window + 64 places; keys in tiles, values in rows, as in
kv_append. Indexed rows: selector blocks and mean values on the device, K and V codes on the host
(higgs_layout).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .higgs_layout import BLOCK_TOKENS

# int64 words of a layer's pool table: addresses, and strides in bytes
POOL_WORDS = (
    *("ring_k", "ring_k_slot", "ring_k_head", "ring_v", "ring_v_slot", "ring_v_head"),
    *("selectors", "selectors_slot", "selectors_head"),
    *("rows", "rows_slot", "rows_head"),
    *("scales", "scales_slot", "scales_head"),
    *("values", "values_slot", "values_head"),
    *("means", "means_slot", "means_head"),
    *("tail_parts", "tail_parts_slot", "tail_parts_head"),
    *("directory", "directory_slot", "directory_head"),
    *("cached_rows", "cached_rows_slot", "cached_rows_head"),
    *("cached_scales", "cached_scales_slot", "cached_scales_head"),
    *("selector_tables", "mean_tables", "k_tables", "v_tables"),
    *("n_kv_heads", "rows_read", "steps"),
    *("n_places", "hits"),  # of the cache of rows, if there is one; selected rows that were in it
)
MOST_PLACES = 1 << 16  # of a head in a cache of rows: so many marks a block of a GPU holds
FIRST_RUN = 2  # among the partials of a query head, behind the ring and the tail
BLOCKS_PER_RUN = 16  # scored by one thread at a time; lanes of a vector


def pool_word(name: str) -> int:
    """Byte offset of a word in the pool table."""
    return 8 * POOL_WORDS.index(name)


@dataclass(frozen=True, slots=True)
class YakvShape:
    """What the kernels are compiled for. `kind` is the number format of exact rows, `centred` subtracts
    the mean key before encoding, with `tail` a part of the estimated mass of the other rows is added, which a
    slot's tail_parts tell for every query head.
    """

    group: int
    head_dim: int
    kind: str
    selector: str
    k_format: str
    v_format: str
    n_sinks: int
    window: int
    rule: str
    centred: bool
    tail: bool

    @property
    def parameters(self) -> tuple[str | float, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    @property
    def weight_rows(self) -> int:
        return weight_rows(self.group, self.rule)

    @property
    def sink_places(self) -> int:
        return -(-self.n_sinks // 16) * 16

    @property
    def ring_places(self) -> int:
        return self.sink_places + self.window + BLOCK_TOKENS


def weight_rows(group: int, rule: str) -> int:
    """Rows of weights a step keeps per kv head: of its queries, and two for mean logits in float32."""
    return group + 2 * (rule == "mean")


@dataclass(frozen=True, slots=True)
class Budget:
    """Rows selected per head: `ratio` / 2^20 of the tokens and at least `at_least`; all up to min_len
    tokens.
    """

    ratio: int
    at_least: int
    min_len: int


def indexed_end(n: int, n_sinks: int, window: int) -> int:
    """The end of the indexed positions of a slot of n tokens. Plain Python for the method and its tests,
    compiled into the kernels.
    """
    return n_sinks + max(0, n - n_sinks - window) // 64 * 64


def ring_place(position: int, n_sinks: int, sink_places: int, ring_len: int) -> int:
    """The place of an exact position; ring_len = window + 64."""
    return position if position < n_sinks else sink_places + (position - n_sinks) % ring_len


def run_len(n_selected: int) -> int:
    """Selected rows per run: a multiple of 16, so that the runs of a head find room beside ring and tail."""
    return max(64, (n_selected + 16 * 14 - 1) // (16 * 14) * 16)


def make_address(name: str) -> Any:
    """An inline function of (pools, slot, head): where a pool of that name begins for a head."""
    from ..cpu import vector_ops as v

    base_at, slot_at, head_at = (pool_word(word) for word in (name, f"{name}_slot", f"{name}_head"))

    @v.inline
    def address_of(pools: int, slot: int, head: int) -> int:
        base, slot_stride = v.get_i64(pools + base_at), v.get_i64(pools + slot_at)
        return base + slot * slot_stride + head * v.get_i64(pools + head_at)

    return address_of


def make_pool_addresses(shape: YakvShape) -> tuple[Any, ...]:
    """Inline functions of (pools, slot, head): where the ring's keys and values, the selector blocks, the
    host rows, their scales, the mean values of blocks and the mean key of a head begin.
    """
    names = ("ring_k", "ring_v", "selectors", "rows", "scales", "values", "means")
    return tuple(make_address(name) for name in names)
