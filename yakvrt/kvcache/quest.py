"""Quest (Tang et al., ICML 2024, arXiv 2406.10774): pages chosen by an upper bound of their best logit.

Differs: the paper leaves all rows on the GPU and chooses per query head; here rows rest on the host, so that
what is read compares with methods that offload, and the heads of a group choose together by `rule`. Generated
tokens join the pages; the last pages, the one being filled among them, are always read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..cpu.memory import reserved
from ..ops import ELEMENT_BYTES, Buffer, KvRows, Ops, element_type
from .budget import budget_tokens, check_budget, check_choice, check_range
from .contract import BY_TOKEN, AttentionInput, KvSetting, Pools, StateArray, StepBytes, TokenRows
from .counters import Counters, method_stats
from .dense_layers import DenseLayers
from .digests import page_digests, page_rows, page_scores
from .exact_rows import ExactRows
from .rows import RULES, attend_each, attend_rows, group_weights, top
from .slots import SlotList
from .staging import Staging, staging_bytes

if TYPE_CHECKING:
    from ..config import ModelConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """sparse_budget: tokens, or a share of the prompt, read in whole pages per KV head, rounded up; at least
    min_pages. window: the last pages, which are read beside them.

    Raises: ValueError for a value out of range.
    """

    sparse_budget: float = 1024
    page: int = 16
    min_pages: int = 3
    window: int = 1
    dense_layers: int = 2
    rule: str = "max"

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_range("page", self.page, 1, 1024)
        check_range("min_pages", self.min_pages, 1, 1 << 20)
        check_range("window", self.window, 1, 1024)
        check_range("dense_layers", self.dense_layers, 0, 1024)
        check_choice("rule", self.rule, RULES)


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
    """Bytes: the bytes per token, and on the device the last pages."""
    row = config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]
    return Pools(
        device={
            "digests and dense layers": int(n_tokens * device_bytes_per_token(config, parameters, kind)),
            "last pages": config.n_layers * row * parameters.page * parameters.window,
        },
        host={"keys and values": int(n_tokens * host_bytes_per_token(config, parameters, kind))},
        transient={"staging": staging_bytes(config, kind, n_tokens)},
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: (L - dense) * Hk * rows * 2 * D * element size."""
    wanted = max(
        parameters.min_pages, -(-budget_tokens(parameters.sparse_budget, n_tokens) // parameters.page)
    )
    selected = min(wanted * parameters.page, n_tokens)
    device = sum(pools(config, parameters, kind, n_tokens).device.values())
    return StepBytes(device, selected * int(host_bytes_per_token(config, parameters, kind)))


def build(setting: KvSetting, parameters: Parameters) -> Quest:
    return Quest(setting, parameters)


@dataclass(slots=True)
class _Slot:
    """`last` holds the last pages, by position modulo their size. prompt: the tokens of which the budget is
    a share, those held when the last prompt was in.
    """

    rows: ExactRows
    last: ExactRows
    digests: np.ndarray
    prompt: np.ndarray


class Quest:
    """Digests on the device, rows on the host."""

    def __init__(self, setting: KvSetting, parameters: Parameters) -> None:
        self._setting, self._parameters = setting, parameters
        self._window = parameters.page * parameters.window
        self._free, self._slots = SlotList(setting), dict[int, _Slot]()
        self._staging = Staging(setting)
        self._counters = Counters(setting.config.n_layers)
        self._dense = DenseLayers(setting, parameters.dense_layers, self._counters, on_host=False)

    def open(self, n_tokens: int) -> int:
        slot = self._free.take(n_tokens)
        config, kind, page = self._setting.config, self._setting.kind, self._parameters.page
        shape = config.n_layers, config.n_kv_heads
        dtype = element_type(kind)
        digests = reserved((*shape, max(1, n_tokens // page), 2 * config.head_dim * dtype.itemsize))
        self._slots[slot] = _Slot(
            ExactRows(*shape, n_tokens, config.head_dim, kind),
            ExactRows(*shape, self._window, config.head_dim, kind),
            digests.view(dtype),
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
        self._settle(held, layer, n)
        held.prompt[0] = n

    def _budget(self, held: _Slot) -> int:
        """In pages."""
        tokens = budget_tokens(self._parameters.sparse_budget, int(held.prompt[0]))
        return max(self._parameters.min_pages, -(-tokens // self._parameters.page))

    def _settle(self, held: _Slot, layer: int, n: int) -> None:
        """Loads the last pages of n tokens."""
        page = self._parameters.page
        for first in range(self._window_start(n) * page, n, page):
            rows = held.rows.read(layer, first, min(n, first + page))
            held.last.write(layer, first % self._window, *rows)

    def _window_start(self, position: int) -> int:
        """The first of the last pages when the token at `position` comes."""
        return max(0, position // self._parameters.page - self._parameters.window + 1)

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
        page, dim = self._parameters.page, self._setting.config.head_dim
        held.rows.write(layer, position, k[:, None], v[:, None])
        held.last.write(layer, position % self._window, k[:, None], v[:, None])
        full = self._window_start(position)
        places = np.arange(full * page, position + 1) % self._window
        keys, values = held.last.take(layer, np.broadcast_to(places, (len(q), len(places))))
        n_pages = min(self._budget(held), full)
        if n_pages:
            bounds = page_scores(q, held.digests[layer, :, :full]) * np.float32(dim**-0.5)
            chosen = top(group_weights(bounds, self._parameters.rule), n_pages)
            fetched = held.rows.take(layer, page_rows(chosen, page))
            keys = np.concatenate([fetched[0], keys], axis=1)
            values = np.concatenate([fetched[1], values], axis=1)
        if (position + 1) % page == 0:
            self._digest(held, layer, position // page, position // page + 1)
        asked = len(q) * n_pages * page
        row_bytes = 2 * dim * ELEMENT_BYTES[self._setting.kind]
        self._counters.add(layer, read=len(q) * keys.shape[1], asked=asked, hit=0, row_bytes=row_bytes)
        return attend_rows(q, keys, values)

    def _digest(self, held: _Slot, layer: int, first: int, last: int) -> None:
        """Makes the digests of pages first to last - 1."""
        page = self._parameters.page
        k, _ = held.rows.read(layer, first * page, last * page)
        held.digests[layer, :, first:last] = page_digests(k, page, centred=False)

    def truncate(self, slot: int, n_held: int, n: int) -> int:
        held = self._slots[slot]
        for layer in range(self._dense.n, self._setting.config.n_layers):
            self._settle(held, layer, n)
        held.prompt[0] = min(held.prompt[0], n)
        return n

    def state(self, slot: int, n_held: int) -> Mapping[str, StateArray]:
        held, dense, page = self._slots[slot], self._dense.n, self._parameters.page
        return {
            **self._dense.state(slot, n_held),
            "rows": StateArray(held.rows.first(n_held, dense), rows=BY_TOKEN),
            "last": StateArray(held.last.first(self._window, dense)),
            "digests": StateArray(held.digests[dense:, :, : n_held // page], rows=TokenRows(2, page)),
            "prompt": StateArray(held.prompt, (0, n_held)),
        }

    def release(self, slot: int) -> None:
        del self._slots[slot]
        self._free.give_back(slot)

    def stats(self) -> Mapping[str, float | str]:
        setting, parameters = self._setting, self._parameters
        of = setting.config, parameters, setting.kind
        return method_stats(
            "quest",
            setting,
            pools(*of, setting.ctx_size),
            self._counters,
            device_bytes_per_token(*of),
            host_bytes_per_token(*of),
        )
