"""ArkVale (Chen et al., NeurIPS 2024): pages recalled to a device cache by the score of their digests.

The digest of a page is a cuboid around the middle of its keys, as wide as their mean distance from it. The
first and the last pages stay on the device; of the others the best are recalled in every step and overwrite
the resident pages of least score; attention reads all resident pages.

Differs: the cache starts with the first and last pages alone, where the paper fills it with the choice of the
prompt's last query. Every page is also on the host (the paper backs pages up when they are full). Generated
tokens join the pages. Every KV head has pages of its own, as in YAKV's comparison; in ArkVale's code all
heads share them by default. The mean over query heads is the paper's rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..cpu.exact_rows import ExactRows
from ..cpu.memory import reserved
from ..kernels.chosen_rows import attend_rows, group_weights, page_rows, page_scores, top
from ..kernels.page_digests import page_digests_ref
from ..kernels.select_topk import RULES
from ..ops import ELEMENT_BYTES, Buffer, KvRows, Ops, element_type
from .budget import budget_tokens, check_budget, check_choice, check_range
from .contract import BY_TOKEN, AttentionInput, KvSetting, Pools, StateArray, StepBytes, TokenRows
from .counters import Counters, method_stats
from .dense_layers import DenseLayers
from .rows import attend_each, replace_missing
from .slots import SlotList
from .staging import Staging, staging_bytes

if TYPE_CHECKING:
    from ..config import ModelConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """sparse_budget: tokens, or a share of the prompt, in pages wanted per KV head and step, rounded up.

    cache_budget: the same for the resident pages, the first (sinks) and last (window) ones included; 0 holds
    no more than is wanted.
    Raises: ValueError for a value out of range.
    """

    sparse_budget: float = 1024
    cache_budget: float = 4096
    page: int = 32
    sinks: int = 2
    window: int = 2
    dense_layers: int = 2
    rule: str = "mean"

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_budget("cache_budget", self.cache_budget, zero=True)
        check_range("page", self.page, 1, 1024)
        check_range("sinks", self.sinks, 0, 1024)
        check_range("window", self.window, 1, 1024)
        check_range("dense_layers", self.dense_layers, 0, 1024)
        check_choice("rule", self.rule, RULES)

    def pages(self, n_tokens: int) -> tuple[int, int]:
        """Pages wanted in a step, and the most resident beside the first and last ones, for a prompt."""
        wanted = -(-budget_tokens(self.sparse_budget, n_tokens) // self.page)
        if not self.cache_budget:
            return wanted, wanted
        cached = budget_tokens(self.cache_budget, n_tokens) // self.page
        return wanted, max(wanted, cached - self.sinks - self.window)

    def places(self, n_tokens: int) -> int:
        """Places for recalled pages in a slot of n_tokens."""
        return min(self.pages(n_tokens)[1], -(-n_tokens // self.page))


def host_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: (L - dense) * Hk * 2 * D * element size."""
    sparse = max(0, config.n_layers - parameters.dense_layers)
    return sparse * config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]


def device_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: digests (L - dense) * Hk * 2 * D / page, rows dense * Hk * 2 * D, times the element size."""
    dense = min(config.n_layers, parameters.dense_layers)
    row = config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]
    return (config.n_layers - dense) * row / parameters.page + dense * row


def pools(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> Pools:
    """Bytes: the bytes per token, and the resident pages of a prompt of n_tokens."""
    row = config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]
    pages = parameters.sinks + parameters.window + parameters.places(n_tokens)
    sparse = max(0, config.n_layers - parameters.dense_layers)
    return Pools(
        device={
            "digests and dense layers": int(n_tokens * device_bytes_per_token(config, parameters, kind)),
            "resident pages": sparse * row * pages * parameters.page,
        },
        host={"keys and values": int(n_tokens * host_bytes_per_token(config, parameters, kind))},
        transient={"staging": staging_bytes(config, kind, n_tokens)},
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: (L - dense) * Hk * rows * 2 * D * element size."""
    selected = min(parameters.pages(n_tokens)[0] * parameters.page, n_tokens)
    device = int(n_tokens * device_bytes_per_token(config, parameters, kind))
    return StepBytes(device, selected * int(host_bytes_per_token(config, parameters, kind)))


def build(setting: KvSetting, parameters: Parameters) -> ArkVale:
    return ArkVale(setting, parameters)


@dataclass(slots=True)
class _Slot:
    """Places of resident pages: the first pages, then the last ones in a ring, then the recalled ones, whose
    numbers are in `recalled` [L, Hk, places] (-1: none). prompt: the tokens of which the budgets are shares,
    those held when the last prompt was in.
    """

    rows: ExactRows
    resident: ExactRows
    digests: np.ndarray
    recalled: np.ndarray
    prompt: np.ndarray


class ArkVale:
    """Digests and a cache of pages on the device, all pages on the host."""

    def __init__(self, setting: KvSetting, parameters: Parameters) -> None:
        self._setting, self._parameters = setting, parameters
        self._free, self._slots = SlotList(setting), dict[int, _Slot]()
        self._staging = Staging(setting)
        self._counters = Counters(setting.config.n_layers)
        self._dense = DenseLayers(setting, parameters.dense_layers, self._counters, on_host=False)
        self._row_bytes = 2 * setting.config.head_dim * ELEMENT_BYTES[setting.kind]

    def open(self, n_tokens: int) -> int:
        slot = self._free.take(n_tokens)
        config, kind, p = self._setting.config, self._setting.kind, self._parameters
        shape = config.n_layers, config.n_kv_heads
        dtype = element_type(kind)
        digests = reserved((*shape, max(1, n_tokens // p.page), 2 * config.head_dim * dtype.itemsize))
        places = p.places(n_tokens)
        n_rows = (p.sinks + p.window + places) * p.page
        self._slots[slot] = _Slot(
            ExactRows(*shape, n_tokens, config.head_dim, kind),
            ExactRows(*shape, n_rows, config.head_dim, kind),
            digests.view(dtype),
            np.full((*shape, places), -1, np.int64),
            np.zeros(1, np.int64),
        )
        return slot

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        if layer >= self._dense.n:
            self._staging.write(0, *self._slots[slot].rows.read(layer, 0, n_held))

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        if layer < self._dense.n:
            return self._dense.prefill(ops, layer, attention)
        ops.kv_append(self._staging.rows, attention.k, attention.v)
        return self._staging.rows

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        if layer < self._dense.n:
            return
        held, n, page = self._slots[slot], n_held + n_new, self._parameters.page
        held.rows.write(layer, n_held, *self._staging.read(n_held, n))
        self._digest(held, layer, n_held // page, n // page)
        held.prompt[0] = n
        self._settle(held, layer, n)

    def _settle(self, held: _Slot, layer: int, n: int) -> None:
        """Loads the first and last pages of n tokens, and drops the recalled ones."""
        p = self._parameters
        full = n // p.page
        held.recalled[layer] = -1
        for number in {*range(min(p.sinks, full + 1)), *range(max(0, full - p.window + 1), full + 1)}:
            first, last = number * p.page, min(n, (number + 1) * p.page)
            held.resident.write(layer, self._place(number) * p.page, *held.rows.read(layer, first, last))

    def _place(self, number: int) -> int:
        """Where a first or last page lies."""
        p = self._parameters
        return number if number < p.sinks else p.sinks + number % p.window

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        if layer < self._dense.n:
            self._dense.decode(ops, layer, attention, out)
            return

        def attend(slot: int, position: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
            return self._attend(self._slots[slot], layer, position, q, k, v)

        attend_each(ops, self._setting.config, attention, out, attend)

    def _attend(
        self, held: _Slot, layer: int, position: int, q: np.ndarray, k: np.ndarray, v: np.ndarray
    ) -> np.ndarray:
        p, n_heads = self._parameters, len(q)
        now = position // p.page
        place = self._place(now) * p.page + position % p.page
        held.rows.write(layer, position, k[:, None], v[:, None])
        held.resident.write(layer, place, k[:, None], v[:, None])
        most, n_places = p.pages(int(held.prompt[0]))
        recalled = held.recalled[layer, :, :n_places]
        n_wanted, n_hit = self._recall(held, layer, now, q, recalled, most)
        if (position + 1) % p.page == 0:
            self._digest(held, layer, now, now + 1)

        lasting = [*range(min(p.sinks, now + 1)), *range(max(p.sinks, now - p.window + 1), now + 1)]
        rows = page_rows(np.array([self._place(number) for number in lasting]), p.page)
        pinned = rows[: len(rows) - p.page + position % p.page + 1]  # the page being filled comes last
        recalled = recalled[:, : (recalled >= 0).sum(axis=1).max()]  # places fill from the first
        cached = page_rows(p.sinks + p.window + np.arange(recalled.shape[1]), p.page)
        keys, values = held.resident.take(
            layer, np.broadcast_to(np.concatenate([pinned, cached]), (n_heads, len(pinned) + len(cached)))
        )
        readable = np.ones(keys.shape[:2], bool)
        readable[:, len(pinned) :] = np.repeat(recalled >= 0, p.page, axis=1)
        asked = n_wanted * p.page
        self._counters.add(
            layer,
            read=int(np.count_nonzero(readable)),
            asked=asked,
            hit=n_hit * p.page,
            row_bytes=self._row_bytes,
        )
        return attend_rows(q, keys, values, readable)

    def _recall(
        self, held: _Slot, layer: int, now: int, q: np.ndarray, recalled: np.ndarray, most: int
    ) -> tuple[int, int]:
        """Fetches the best pages, at most `most`, that are not there. Returns: pages wanted, and those that
        were there.
        """
        p, n_heads = self._parameters, len(q)
        first, last = p.sinks, now - p.window + 1  # the pages that may be recalled
        count = min(most, recalled.shape[1], max(0, last - first))
        if not count:
            return 0, 0
        scores = page_scores(q, held.digests[layer, :, first:last])
        weights = group_weights(scores * np.float32(q.shape[-1] ** -0.5), p.rule)
        wanted = first + top(weights, count)
        keep = np.take_along_axis(weights, np.maximum(recalled - first, 0), axis=1)
        heads, places, pages = replace_missing(recalled, wanted, last, keep)
        held.resident.copy_from(
            layer,
            np.repeat(heads, p.page),
            page_rows(p.sinks + p.window + places, p.page),
            held.rows,
            page_rows(pages, p.page),
        )
        return n_heads * count, n_heads * count - len(pages)

    def _digest(self, held: _Slot, layer: int, first: int, last: int) -> None:
        """Makes the digests of pages first to last - 1."""
        page = self._parameters.page
        k, _ = held.rows.read(layer, first * page, last * page)
        held.digests[layer, :, first:last] = page_digests_ref(k, page, centred=True)

    def truncate(self, slot: int, n_held: int, n: int) -> int:
        held = self._slots[slot]
        for layer in range(self._dense.n, self._setting.config.n_layers):
            self._settle(held, layer, n)
        held.prompt[0] = min(held.prompt[0], n)
        return n

    def state(self, slot: int, n_held: int) -> Mapping[str, StateArray]:
        held, p, dense = self._slots[slot], self._parameters, self._dense.n
        places, full = p.places(n_held), n_held // p.page
        return {
            **self._dense.state(slot, n_held),
            "rows": StateArray(held.rows.first(n_held, dense), rows=BY_TOKEN),
            "resident": StateArray(held.resident.first((p.sinks + p.window + places) * p.page, dense)),
            "digests": StateArray(held.digests[dense:, :, :full], rows=TokenRows(2, p.page)),
            "recalled": StateArray(held.recalled[dense:, :, :places], (-1, max(-1, full - p.window))),
            "prompt": StateArray(held.prompt, (0, n_held)),
        }

    def release(self, slot: int) -> None:
        del self._slots[slot]
        self._free.give_back(slot)

    def stats(self) -> Mapping[str, float | str]:
        setting = self._setting
        of = setting.config, self._parameters, setting.kind
        return method_stats(
            "arkvale",
            setting,
            pools(*of, setting.ctx_size),
            self._counters,
            device_bytes_per_token(*of),
            host_bytes_per_token(*of),
        )
