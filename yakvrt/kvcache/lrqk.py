"""LRQK (Li et al., NeurIPS 2025, arXiv 2510.23649): tokens chosen per query head by proxies of low rank.

Every query head has proxies A_K of all keys on the device, and places for the rows it chose; in a step only
rows that are not there yet cross the link. The last tokens stay in a ring.

Differs: the ring always holds the last `recent` tokens. The rows of a further prompt get their proxies from
the first prompt's B_K. Rows are on the host as soon as they exist. Generated tokens get proxies, and leave
the ring for the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..cpu.exact_rows import ExactRows
from ..cpu.memory import reserved
from ..kernels.chosen_rows import attend_rows, logits, replace_missing, top
from ..ops import ELEMENT_BYTES, Buffer, KvRows, Ops, element_type
from .budget import budget_tokens, check_budget, check_choice, check_range
from .contract import BY_TOKEN, AttentionInput, KvSetting, Pools, StateArray, StepBytes
from .counters import Counters, method_stats
from .lrqk_factors import INITS, Factors, factorise
from .prompt_queries import PromptQueries
from .rows import attend_each
from .slots import SlotList
from .staging import Staging, staging_bytes

if TYPE_CHECKING:
    from ..config import ModelConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """sparse_budget: tokens, or a share of the prompt, chosen per query head; split_budget shares it out
    among the query heads of a group.

    Raises: ValueError for a value out of range.
    """

    sparse_budget: float = 512
    split_budget: bool = False
    rank: int = 16
    recent: int = 16
    iterations: int = 2
    tolerance: float = 0.01
    init: str = "topcol"

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_range("rank", self.rank, 1, 256)
        check_range("recent", self.recent, 1, 1 << 20)
        check_range("iterations", self.iterations, 1, 100)
        check_range("tolerance", self.tolerance, 0, 1e9)
        check_choice("init", self.init, INITS)

    def places(self, config: ModelConfig, n_tokens: int) -> int:
        """Tokens chosen per query head for a prompt of n_tokens."""
        wanted = budget_tokens(self.sparse_budget, n_tokens)
        return max(1, wanted * config.n_kv_heads // config.n_heads) if self.split_budget else wanted


def host_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: L * Hk * 2 * D * element size."""
    return config.n_layers * config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]


def device_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: L * Hq * rank * 2."""
    return config.n_layers * config.n_heads * min(parameters.rank, config.head_dim) * 2


def pools(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> Pools:
    """Bytes: the bytes per token; rows of the chosen tokens per query head and of the ring per KV head; B_Q
    and B_K in float32.
    """
    row = 2 * config.head_dim * ELEMENT_BYTES[kind]
    places = min(n_tokens, parameters.places(config, n_tokens))
    rank = min(parameters.rank, config.head_dim)
    return Pools(
        device={
            "proxies": int(n_tokens * device_bytes_per_token(config, parameters, kind)),
            "chosen rows": config.n_layers * config.n_heads * places * row,
            "last tokens": config.n_layers * config.n_kv_heads * parameters.recent * row,
            "factors": config.n_layers * config.n_heads * 2 * rank * config.head_dim * 4,
        },
        host={"keys and values": int(n_tokens * host_bytes_per_token(config, parameters, kind))},
        transient={
            "staging": staging_bytes(config, kind, n_tokens),
            "queries": 4 * config.n_heads * config.head_dim * n_tokens,
        },
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: L * Hq * rows * 2 * D * element size."""
    held = pools(config, parameters, kind, n_tokens).device
    selected = min(parameters.places(config, n_tokens), n_tokens)
    row = 2 * config.head_dim * ELEMENT_BYTES[kind]
    device = sum(n for name, n in held.items() if name != "chosen rows")
    return StepBytes(device, config.n_layers * config.n_heads * selected * row)


def build(setting: KvSetting, parameters: Parameters) -> Lrqk:
    return Lrqk(setting, parameters)


@dataclass(slots=True)
class _Slot:
    """`ring` by position modulo its size; `active` rows of the tokens named in `chosen` [L, Hq, places] (-1:
    none); proxies bfloat16 [L, Hq, tokens, r]; factors float32 [L, Hq, r, D]. prompt: the tokens of which the
    budget is a share, those held when the last prompt was in.
    """

    rows: ExactRows
    ring: ExactRows
    active: ExactRows
    chosen: np.ndarray
    proxies: np.ndarray
    b_q: np.ndarray
    b_k: np.ndarray
    prompt: np.ndarray

    def factors(self, layer: int) -> Factors:
        return Factors(self.b_q[layer], self.b_k[layer])


class Lrqk:
    """Proxies and chosen rows on the device, all rows on the host."""

    def __init__(self, setting: KvSetting, parameters: Parameters) -> None:
        self._setting, self._parameters = setting, parameters
        self._free, self._slots = SlotList(setting), dict[int, _Slot]()
        self._staging, self._queries = Staging(setting), PromptQueries(setting)
        self._counters = Counters(setting.config.n_layers)
        self._group = setting.config.n_heads // setting.config.n_kv_heads

    def open(self, n_tokens: int) -> int:
        slot = self._free.take(n_tokens)
        config, kind, p = self._setting.config, self._setting.kind, self._parameters
        n_layers, dim, rank = config.n_layers, config.head_dim, min(p.rank, config.head_dim)
        places = min(n_tokens, p.places(config, n_tokens))
        proxies = reserved((n_layers, config.n_heads, n_tokens, 2 * rank))
        b_q, b_k = np.zeros((2, n_layers, config.n_heads, rank, dim), np.float32)
        self._slots[slot] = _Slot(
            ExactRows(n_layers, config.n_kv_heads, n_tokens, dim, kind),
            ExactRows(n_layers, config.n_kv_heads, p.recent, dim, kind),
            ExactRows(n_layers, config.n_heads, places, dim, kind),
            np.full((n_layers, config.n_heads, places), -1, np.int64),
            proxies.view(element_type("bf16")),
            b_q,
            b_k,
            np.zeros(1, np.int64),
        )
        return slot

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        self._staging.write(0, *self._slots[slot].rows.read(layer, 0, n_held))

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        self._queries.record(ops, attention)
        ops.kv_append(self._staging.rows, attention.k, attention.v)
        return self._staging.rows

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        held, n, p = self._slots[slot], n_held + n_new, self._parameters
        k, v = self._staging.read(n_held, n)
        held.rows.write(layer, n_held, k, v)
        held.prompt[0] = n
        self._settle(held, layer, n)
        keys = np.repeat(k, self._group, axis=0)
        if n_held:
            held.proxies[layer, :, n_held:n] = held.factors(layer).project(keys)
            return
        q = self._queries.read(0, n)
        made = factorise(q, keys, p.rank, p.iterations, p.tolerance, p.init)
        factors, a_q, a_k = made
        held.b_q[layer], held.b_k[layer] = factors.b_q, factors.b_k
        held.proxies[layer, :, :n] = a_k
        self._choose(held, layer, a_q[:, -1:], n - p.recent)

    def _settle(self, held: _Slot, layer: int, n: int) -> None:
        """Loads the last of n tokens, and drops the chosen ones."""
        n_heads = self._setting.config.n_kv_heads
        positions = np.arange(max(0, n - self._parameters.recent), n)
        heads, positions = np.repeat(np.arange(n_heads), len(positions)), np.tile(positions, n_heads)
        held.ring.copy_from(layer, heads, positions % self._parameters.recent, held.rows, positions)
        held.chosen[layer] = -1

    def _choose(
        self, held: _Slot, layer: int, q_hat: np.ndarray, n: int
    ) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
        """Fetches the best of the first n tokens that are not there. Returns: tokens chosen per head, and
        (heads, places) of those fetched.
        """
        wanted = self._parameters.places(self._setting.config, int(held.prompt[0]))
        count = max(0, min(wanted, held.chosen.shape[2], n))
        if not count:
            none = np.empty(0, np.int64)
            return 0, (none, none)
        scores = logits(q_hat, held.proxies[layer, :, :n])[:, 0]
        heads, places, ids = replace_missing(held.chosen[layer, :, :count], top(scores, count), n)
        held.active.copy_from(layer, heads, places, held.rows, ids)
        return count, (heads, places)

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        def attend(slot: int, position: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
            return self._attend(self._slots[slot], layer, position, q, k, v)

        attend_each(ops, self._setting.config, attention, out, attend)

    def _attend(
        self, held: _Slot, layer: int, position: int, q: np.ndarray, k: np.ndarray, v: np.ndarray
    ) -> np.ndarray:
        recent, dim = self._parameters.recent, q.shape[-1]
        queries = q.reshape(-1, 1, dim)
        n_heads = len(queries)
        held.rows.write(layer, position, k[:, None], v[:, None])
        past = np.arange(max(0, position - recent + 1), position)
        ring = [np.repeat(rows, self._group, axis=0) for rows in self._ring(held, layer, past)]
        chosen = held.chosen[layer]
        chosen = chosen[:, : int((chosen[0] >= 0).sum())]  # places fill from the first, in all heads alike
        keys, values = held.active.read(layer, 0, chosen.shape[1])
        proxies = np.concatenate(
            [
                held.proxies[layer, np.arange(n_heads)[:, None], chosen],
                held.proxies[layer, :, past[0] if len(past) else 0 :][:, : len(past)],
            ],
            axis=1,
        ).astype(np.float32)
        new_k, new_v = (np.repeat(row[:, None], self._group, axis=0) for row in (k, v))
        resident = np.concatenate([keys, ring[0]], axis=1)
        q_hat, k_hat = held.factors(layer).step(queries, new_k, resident, proxies)
        held.proxies[layer, :, position] = k_hat[:, 0]
        held.ring.write(layer, position % recent, k[:, None], v[:, None])

        count, fetched = self._choose(held, layer, q_hat, position - recent + 1)
        if count > keys.shape[1]:
            keys, values = held.active.read(layer, 0, count)
        else:
            keys[fetched], values[fetched] = held.active.pick(layer, *fetched)
        keys, values = (
            np.concatenate(rows, axis=1) for rows in ((keys, ring[0], new_k), (values, ring[1], new_v))
        )
        self._counters.add(
            layer,
            read=n_heads * keys.shape[1],
            asked=n_heads * count,
            hit=n_heads * count - len(fetched[0]),
            row_bytes=2 * dim * ELEMENT_BYTES[self._setting.kind],
        )
        return attend_rows(queries, keys, values)

    def _ring(self, held: _Slot, layer: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of positions in the ring, per KV head."""
        n_heads = self._setting.config.n_kv_heads
        places = np.broadcast_to(positions % self._parameters.recent, (n_heads, len(positions)))
        return held.ring.take(layer, places)

    def truncate(self, slot: int, n_held: int, n: int) -> int:
        held = self._slots[slot]
        for layer in range(self._setting.config.n_layers):
            self._settle(held, layer, n)
        held.prompt[0] = min(held.prompt[0], n)
        return n

    def state(self, slot: int, n_held: int) -> Mapping[str, StateArray]:
        held, p = self._slots[slot], self._parameters
        places = min(n_held, p.places(self._setting.config, n_held))
        return {
            "rows": StateArray(held.rows.first(n_held), rows=BY_TOKEN),
            "ring": StateArray(held.ring.first(p.recent)),
            "active": StateArray(held.active.first(places)),
            "chosen": StateArray(held.chosen[:, :, :places], (-1, max(-1, n_held - p.recent - 1))),
            "proxies": StateArray(held.proxies[:, :, :n_held], rows=BY_TOKEN),
            "b_q": StateArray(held.b_q),
            "b_k": StateArray(held.b_k),
            "prompt": StateArray(held.prompt, (0, n_held)),
        }

    def release(self, slot: int) -> None:
        del self._slots[slot]
        self._free.give_back(slot)

    def stats(self) -> Mapping[str, float | str]:
        setting = self._setting
        of = setting.config, self._parameters, setting.kind
        return method_stats(
            "lrqk",
            setting,
            pools(*of, setting.ctx_size),
            self._counters,
            device_bytes_per_token(*of),
            host_bytes_per_token(*of),
        )
