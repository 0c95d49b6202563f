"""YAKV in the configuration of its paper's accuracy figures. `yakv` is our own variant of it.

The host holds keys before RoPE and values as 4-bit codes, the device 2-bit codes of the keys after RoPE,
which choose. Beside the chosen rows a step reads the prompt's last tokens (recent) and all generated ones,
exact on the device and not indexed. Each query head has its probabilities over the indexed tokens alone; a
group ranks tokens by the largest (rule).

Source: YAKV, arXiv 2604.08426; HIGGS, arXiv 2411.17525.
Differs: the paper keeps decoded rows and counts bits; here rows are codes, decoded in every step. Scales
are root mean squares in float16 (the paper: norms in float32, counted as 16 bits), scores float32 (the
paper rounds them to bfloat16). Where Hk * D is no power of two a row has a rotation of its own
(kernels/rotate.py) or is padded. A further prompt indexes what lies before its last tokens, and codes that
are there stay. Tokens that a cut moves back among the last ones come from their codes.
Bytes: rotation and scale of a K or V row span all KV heads, w = Hk * D coordinates (padded). A token is w +
4 bytes on the host: w / 2 of codes and a scale of 2, each for K and for V; per token L * (w + 4) there and
L * Hk * (D / 4 + 2) on the device. Gross per step and layer k * (w + 4), as the paper counts: k rows of
every KV head with their share of the scales. Moved: (w + 4) for every token that some head chose, since no
head's part of a row can be decoded without the rest; that is up to Hk times the gross bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..cpu.exact_rows import ExactRows
from ..kernels.chosen_rows import attend_rows, group_weights, top
from ..kernels.rope_table import RopeTable
from ..kernels.rotate import rotation_factors
from ..kernels.select_topk import RULES
from ..ops import ELEMENT_BYTES, Buffer, KvRows, Ops
from .budget import budget_tokens, check_budget, check_choice, check_range
from .contract import BY_TOKEN, AttentionInput, KvSetting, Pools, StateArray, StepBytes, TokenRows
from .counters import Counters, method_stats
from .higgs_codes import CodedRows, HiggsCode, coded_width
from .rows import attend_each
from .slots import SlotList
from .staging import Staging, staging_bytes

if TYPE_CHECKING:
    from ..config import ModelConfig

STORE_BLOCK = 4096  # tokens whose float32 rows are held while they are encoded


@dataclass(frozen=True, slots=True)
class Parameters:
    """sparse_budget: tokens, or a share of the prompt, read per KV head and step beside the first
    (prefix_budget), the last (recent) and the generated tokens.

    Raises: ValueError for a value out of range.
    """

    sparse_budget: float = 0.03125
    prefix_budget: int = 0
    recent: int = 64
    rule: str = "max"

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_range("prefix_budget", self.prefix_budget, 0, 1 << 20)
        check_range("recent", self.recent, 0, 1 << 20)
        check_choice("rule", self.rule, RULES)

    def indexed_end(self, n: int) -> int:
        """The end of the indexed positions of a prompt of n tokens, which begin behind the first ones."""
        return max(min(self.prefix_budget, n), n - self.recent)


def token_bytes(config: ModelConfig) -> int:
    """Bytes of one token's K and V codes and scales in one layer."""
    return coded_width(config.n_kv_heads * config.head_dim) + 4


def host_bytes_per_token(config: ModelConfig) -> int:
    """Bytes: L * (w + 4)."""
    return config.n_layers * token_bytes(config)


def device_bytes_per_token(config: ModelConfig) -> int:
    """Bytes: L * Hk * (D / 4 + 2)."""
    return config.n_layers * config.n_kv_heads * (config.head_dim // 4 + 2)


def pools(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> Pools:
    """Bytes: the bytes per token, and exact rows of the first and last ones. For a slot filled by its prompt:
    a generated token takes an exact row.

    Raises: ValueError for a head size without a rotation.
    """
    rotation_factors(config.head_dim)
    row = 2 * config.n_layers * config.n_kv_heads * config.head_dim * ELEMENT_BYTES[kind]
    return Pools(
        device={
            "selectors": n_tokens * device_bytes_per_token(config),
            "first and last tokens": row * min(n_tokens, parameters.prefix_budget + parameters.recent),
        },
        host={"codes and scales": n_tokens * host_bytes_per_token(config)},
        transient={
            "staging": staging_bytes(config, kind, n_tokens),
            "RoPE table": 4 * config.head_dim * n_tokens,
        },
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: L * k * (w + 4), as the paper counts; up to Hk times that cross a link."""
    selected = min(budget_tokens(parameters.sparse_budget, n_tokens), n_tokens)
    device = sum(pools(config, parameters, kind, n_tokens).device.values())
    return StepBytes(device, config.n_layers * selected * token_bytes(config))


def build(setting: KvSetting, parameters: Parameters) -> YakvPaper:
    return YakvPaper(setting, parameters)


@dataclass(slots=True)
class _Slot:
    """Codes and exact rows by position. `ends` [L] of the indexed positions of each layer; prompt [L]: the
    tokens of which the budget is a share, those held when the last prompt was in.
    """

    selectors: CodedRows
    k: CodedRows
    v: CodedRows
    exact: ExactRows
    ends: np.ndarray
    prompt: np.ndarray


class YakvPaper:
    """Selector codes and exact rows on the device, K and V codes on the host."""

    def __init__(self, setting: KvSetting, parameters: Parameters) -> None:
        config = setting.config
        self._setting, self._parameters = setting, parameters
        rotation_factors(config.head_dim)
        self._selector = HiggsCode.of("d4n256", config.head_dim)
        self._row_code = HiggsCode.of("d2n256", config.n_kv_heads * config.head_dim)
        self._free, self._slots = SlotList(setting), dict[int, _Slot]()
        self._staging = Staging(setting)
        self._rope = RopeTable(setting.inv_freq, setting.rope_scale, setting.ctx_size)
        self._counters = Counters(config.n_layers)

    def open(self, n_tokens: int) -> int:
        slot = self._free.take(n_tokens)
        config = self._setting.config
        shape = config.n_layers, config.n_kv_heads
        self._slots[slot] = _Slot(
            CodedRows(self._selector, *shape, n_tokens),
            CodedRows(self._row_code, config.n_layers, 1, n_tokens),
            CodedRows(self._row_code, config.n_layers, 1, n_tokens),
            ExactRows(*shape, n_tokens, config.head_dim, self._setting.kind),
            *np.zeros((2, config.n_layers), np.int64),
        )
        return slot

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        held = self._slots[slot]
        end = int(held.ends[layer])
        first = min(self._parameters.prefix_budget, end)
        self._staging.write(0, *held.exact.read(layer, 0, first))
        self._staging.write(first, *self._decoded(held, layer, self._everywhere(first, end)))
        self._staging.write(end, *held.exact.read(layer, end, n_held))

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        ops.kv_append(self._staging.rows, attention.k, attention.v)
        return self._staging.rows

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        held, n, p = self._slots[slot], n_held + n_new, self._parameters
        old = int(held.ends[layer])
        end = max(old, p.indexed_end(n))
        for first in range(max(old, p.prefix_budget), end, STORE_BLOCK):
            self._encode(held, layer, first, min(first + STORE_BLOCK, end))
        for first, last in ((0, min(p.prefix_budget, end)), (end, n)):
            held.exact.write(layer, first, *self._staging.read(first, last))
        held.ends[layer], held.prompt[layer] = end, n

    def _encode(self, held: _Slot, layer: int, first: int, last: int) -> None:
        """Indexes the tokens at positions first to last - 1 of the prompt under way."""
        k, v = self._staging.read(first, last)
        held.selectors.write(layer, first, k)
        held.k.write(layer, first, _side_by_side(self._rope.unrotate(k, first)))
        held.v.write(layer, first, _side_by_side(v))

    def _decoded(self, held: _Slot, layer: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """K after RoPE and V of indexed tokens. Shapes: positions [Hk, n] -> [Hk, n, D]."""
        dim = self._setting.config.head_dim
        columns = [slice(head * dim, (head + 1) * dim) for head in range(len(positions))]
        k, v = (
            np.stack([rows.take(layer, 0, *of_head) for of_head in zip(positions, columns, strict=True)])
            for rows in (held.k, held.v)
        )
        return self._rope.rotate(k, positions), v

    def _everywhere(self, first: int, last: int) -> np.ndarray:
        """The same positions for all heads."""
        return np.broadcast_to(np.arange(first, last), (self._setting.config.n_kv_heads, last - first))

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        def attend(slot: int, position: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
            return self._attend(self._slots[slot], layer, position, q, k, v)

        attend_each(ops, self._setting.config, attention, out, attend)

    def _attend(
        self, held: _Slot, layer: int, position: int, q: np.ndarray, k: np.ndarray, v: np.ndarray
    ) -> np.ndarray:
        n_heads, dim, end = len(q), q.shape[-1], int(held.ends[layer])
        held.exact.write(layer, position, k[:, None], v[:, None])
        first = min(self._parameters.prefix_budget, end)
        parts = [held.exact.read(layer, 0, first), held.exact.read(layer, end, position + 1)]
        budget = budget_tokens(self._parameters.sparse_budget, int(held.prompt[layer]))
        count, n_tokens = min(budget, end - first), 0
        if count:
            scaled = held.selectors.dots(layer, q, first, end) * np.float32(dim**-0.5)
            chosen = first + top(group_weights(scaled, self._parameters.rule), count)
            parts.append(self._decoded(held, layer, chosen))
            n_tokens = len(np.unique(chosen))
        keys, values = (np.concatenate(rows, axis=1) for rows in zip(*parts, strict=True))
        per_token = token_bytes(self._setting.config)
        self._counters.add_bytes(
            layer,
            read=n_heads * keys.shape[1],
            asked=n_heads * count,
            gross=count * per_token,
            moved=n_tokens * per_token,
        )
        return attend_rows(q, keys, values)

    def truncate(self, slot: int, n_held: int, n: int) -> int:
        held = self._slots[slot]
        begin = self._parameters.indexed_end(n)
        for layer, end in enumerate(held.ends.tolist()):
            if begin < end:
                rows = self._decoded(held, layer, self._everywhere(begin, min(n, end)))
                held.exact.write(layer, begin, *rows)
                held.ends[layer] = begin
        np.minimum(held.prompt, n, out=held.prompt)
        return n

    def state(self, slot: int, n_held: int) -> Mapping[str, StateArray]:
        """Which tokens are indexed depends on what was prompt, so all of them have room in both tables."""
        held, p = self._slots[slot], self._parameters
        end = p.indexed_end(n_held)
        codes = TokenRows(2, first=p.prefix_budget, behind=p.recent)
        return {
            "exact": StateArray(held.exact.first(n_held), rows=BY_TOKEN),
            **held.selectors.state("selector", p.prefix_budget, end, codes),
            **held.k.state("k", p.prefix_budget, end, codes),
            **held.v.state("v", p.prefix_budget, end, codes),
            "ends": StateArray(held.ends, (0, end)),
            "prompt": StateArray(held.prompt, (0, n_held)),
        }

    def release(self, slot: int) -> None:
        del self._slots[slot]
        self._free.give_back(slot)

    def stats(self) -> Mapping[str, float | str]:
        setting = self._setting
        return method_stats(
            "yakv-paper",
            setting,
            pools(setting.config, self._parameters, setting.kind, setting.ctx_size),
            self._counters,
            device_bytes_per_token(setting.config),
            host_bytes_per_token(setting.config),
        )


def _side_by_side(rows: np.ndarray) -> np.ndarray:
    """The heads of a token as one row. Shapes: [H, n, D] -> [1, n, H * D]."""
    return rows.swapaxes(0, 1).reshape(1, rows.shape[1], -1)
