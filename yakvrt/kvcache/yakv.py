"""YAKV: keys are scored from 2-bit codes on the device, the best rows are read from the host: 3 bits of what
those codes leave of a key, 4 bits of a value.

Sinks, the recent window and generated tokens that are still in it stay exact. Tokens that leave the
window are encoded in blocks of 64: a selector code per key (HIGGS, the prompt's mean key subtracted), a
row of K and V codes in host memory, and the mean value of the block. A step ranks all indexed keys by
their estimated probability, reads the best rows, and adds the tail: a part of the estimated mass of
the others times the mean values of their blocks. How large a part the end of the prompt tells (tail_fit.py).

Source: YAKV, arXiv 2604.08426; HIGGS, arXiv 2411.17525.
Differs: rotation and scale per kv head, the mean key subtracted, keys stored after RoPE, exact sinks, the
sum rule with the exact rows in the normaliser, generated tokens indexed, the tail, rows of keys that rest on
the selector's codes (k_bits=4: without them, as in the paper).
Bytes: device L * Hk * (selector block + 2 D) / 64 per token, host L * Hk * (row + 4); moved per step and
layer Hk * k * (row + 4). With a cache of rows only those move that are not resident; it holds L * Hk *
(places * (row + 16) + 4 per token) on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from ..kernels.higgs_layout import ROW_FORMATS, SELECTORS, row_bytes
from ..kernels.rotate import rotation_factors
from ..kernels.select_topk import RULES
from ..kernels.yakv_fetch import directory_bytes, most_selected
from ..kernels.yakv_layout import MOST_PLACES, Budget, YakvShape, indexed_end
from ..kernels.yakv_select import RATIO_BITS, budget_of
from ..ops import ELEMENT_BYTES, Buffer, KvRows, Ops
from .budget import MOST_TOKENS, check_budget, check_choice, check_range
from .contract import AttentionInput, CodedPools, GpuPools, KvSetting, Pools, StateArray, StepBytes
from .slots import SlotList
from .staging import Staging, staging_bytes
from .step_scratch import score_bytes
from .tail_fit import FIT_TOKENS, TailFit
from .yakv_state import yakv_state

if TYPE_CHECKING:
    from ..config import ModelConfig

MAX_WINDOW = 4096
UNFITTED_PART = 0.25  # what serves next-token probabilities best where one number has to serve all heads
MAX_SLOT_CACHE = 64
V_FORMATS = {"3": "q3", "4": "q4", "8": "q8", "16": "bf16"}
K_FORMATS = {**V_FORMATS, "r3": "r3"}


@dataclass(frozen=True, slots=True)
class Parameters:
    """Budgets in tokens per head, or below 1 as a ratio of the tokens held.

    selector: "2bit", "1.5bit" or "1bit"; v_bits: 3, 4, 8 or 16; rule: "sum", "max" or "mean".
    k_bits: those too, or "r3": 3 bits of what the selector's code leaves of a key.
    tail: the part of the mass of the rows that were not selected which counts with the mean values, 0 for
    none; "fitted": for every query head what the end of the prompt tells, a quarter before there is one.
    slot_cache: places for selected rows on the device, as a multiple of a head's largest selection in a slot;
    0: none. The least recently used row gives way.
    """

    sparse_budget: float = 0.03125
    prefix_budget: int = 4
    recent: int = 64
    min_seqlen_to_prune: int = 512
    selector: str = "2bit"
    k_bits: str = "r3"
    v_bits: str = "4"
    rule: str = "sum"
    centred: bool = True
    tail: str = "fitted"
    slot_cache: float = 0.0

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_range("prefix_budget", self.prefix_budget, 0, 1024)
        check_range("min_seqlen_to_prune", self.min_seqlen_to_prune, 0, MOST_TOKENS)
        check_range("recent", self.recent, 64, MAX_WINDOW)
        if self.tail != "fitted":
            check_range("tail", self.tail_part, 0, 1)
        if self.recent % 64:
            raise ValueError(f"recent={self.recent} is not a multiple of 64")
        if not (self.slot_cache == 0 or 1 <= self.slot_cache <= MAX_SLOT_CACHE):
            raise ValueError(
                f"slot_cache={self.slot_cache:g} is out of range; give 0 for none, or 1 to {MAX_SLOT_CACHE} "
                "times the rows of a selection"
            )
        check_choice("selector", self.selector, tuple(SELECTORS))
        check_choice("rule", self.rule, RULES)
        for name, bits, formats in (("k_bits", self.k_bits, K_FORMATS), ("v_bits", self.v_bits, V_FORMATS)):
            if bits not in formats:
                raise ValueError(f"{name}={bits} is not known; choose one of {', '.join(formats)}")

    @property
    def tail_part(self) -> float:
        """Of a slot whose prompt has told nothing.

        Raises: ValueError for a word that is no number.
        """
        try:
            return UNFITTED_PART if self.tail == "fitted" else float(self.tail)
        except ValueError:
            raise ValueError(f'tail={self.tail} is neither "fitted" nor a number from 0 to 1') from None

    @property
    def row_formats(self) -> tuple[str, str]:
        return K_FORMATS[self.k_bits], V_FORMATS[self.v_bits]

    @property
    def budget(self) -> Budget:
        ratio = self.sparse_budget if self.sparse_budget <= 1 else 0.0
        at_least = 1 if ratio else int(self.sparse_budget)
        return Budget(round(ratio * 2**RATIO_BITS), at_least, self.min_seqlen_to_prune)

    def most_selected(self, n_tokens: int) -> int:
        """Rows of a head in a step, in a slot of n_tokens."""
        return most_selected(n_tokens, self.prefix_budget, self.recent, self.budget)

    def cache_places(self, n_tokens: int) -> int:
        """Places for rows of a head in a slot of n_tokens; never more than there are rows, or a directory
        knows.
        """
        n_rows = indexed_end(n_tokens, self.prefix_budget, self.recent) - self.prefix_budget
        return min(n_rows, MOST_PLACES, ceil(self.slot_cache * self.most_selected(n_tokens)))


def shape_of(config: ModelConfig, parameters: Parameters, kind: str) -> YakvShape:
    """Raises: ValueError for a head size without a rotation, or too small for rows of 3 or 4 bits."""
    rotation_factors(config.head_dim)
    if config.head_dim < 32 and any(ROW_FORMATS[name].grid for name in parameters.row_formats):
        raise ValueError(
            f"rows of {config.head_dim} numbers cannot be stored in 3 or 4 bits; give k_bits=8,v_bits=8"
        )
    return YakvShape(
        group=config.n_heads // config.n_kv_heads,
        head_dim=config.head_dim,
        kind=kind,
        selector=parameters.selector,
        k_format=parameters.row_formats[0],
        v_format=parameters.row_formats[1],
        n_sinks=parameters.prefix_budget,
        window=parameters.recent,
        rule=parameters.rule,
        centred=parameters.centred,
        tail=parameters.tail_part > 0,
    )


def pools(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> Pools:
    """See the module's Bytes; a slot's blocks are counted whole."""
    shape = shape_of(config, parameters, kind)
    heads = config.n_layers * config.n_kv_heads
    n_blocks = max(1, -(-(n_tokens - shape.n_sinks) // 64))
    exact = 2 * shape.head_dim * ELEMENT_BYTES[kind]
    row = row_bytes(shape.head_dim, shape.k_format, shape.v_format)
    places, most = parameters.cache_places(n_tokens), parameters.most_selected(n_tokens)
    cache = places * (row + 4) + directory_bytes(places, n_blocks * 64)
    return Pools(
        device={
            "selectors": heads * n_blocks * SELECTORS[shape.selector].block_bytes(shape.head_dim),
            "mean values": heads * n_blocks * 2 * shape.head_dim,
            "exact rows": heads * (shape.ring_places * exact + 4 * shape.head_dim),
            "tail parts": heads * 4 * shape.group,
            **({"cache of rows": heads * cache} if places else {}),
        },
        host={
            "codes": heads * n_blocks * 64 * row,
            "scales": heads * n_blocks * 64 * 4,
        },
        transient={"exact rows of one layer": staging_bytes(config, kind, n_tokens)},
        gpu=GpuPools(
            step=score_bytes(config, n_blocks * 64)
            + 16 * config.n_kv_heads * parameters.most_selected(n_tokens),
            next_layer=staging_bytes(config, kind, n_tokens),
            coded=CodedPools(shape, most, places),
        ),
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: L * Hk * k * (row + 4)."""
    shape, held = shape_of(config, parameters, kind), pools(config, parameters, kind, n_tokens).device
    n_indexed = indexed_end(n_tokens, shape.n_sinks, shape.window) - shape.n_sinks
    budget = parameters.budget
    selected = budget_of(n_tokens, n_indexed, budget.ratio, budget.at_least, budget.min_len)
    row = row_bytes(shape.head_dim, shape.k_format, shape.v_format) + 4
    scanned = sum(n for name, n in held.items() if name != "cache of rows")
    return StepBytes(scanned, config.n_layers * config.n_kv_heads * selected * row)


def build(setting: KvSetting, parameters: Parameters) -> YakvKv:
    return YakvKv(setting, parameters)


class YakvKv:
    """YAKV over slots of one size."""

    def __init__(self, setting: KvSetting, parameters: Parameters) -> None:
        config = setting.config
        self._setting, self._parameters, self._slots = setting, parameters, SlotList(setting)
        self._shape = shape_of(config, parameters, setting.kind)
        self._staging = [Staging(setting).rows for _ in range(setting.backend.layers_under_way)]
        self._pools = setting.backend.yakv_pools(
            config.n_layers,
            setting.n_slots,
            config.n_kv_heads,
            setting.ctx_size,
            self._shape,
            parameters.budget,
            self._staging,
            parameters.cache_places(setting.ctx_size),
        )
        self._stored = [[0] * setting.n_slots for _ in range(config.n_layers)]
        self._fit = (
            TailFit(setting, self._staging, self._pools.layers) if parameters.tail == "fitted" else None
        )

    def open(self, n_tokens: int) -> int:
        slot = self._slots.take(n_tokens)
        self._forget_tail_parts(slot)
        return slot

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        if n_held:
            self._pools.restore(layer, slot, n_held)

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        if self._fit:
            self._fit.keep(ops, layer, attention)
        rows = self._staging[layer % len(self._staging)]
        ops.kv_append(rows, attention.k, attention.v)
        return rows

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        n = n_held + n_new
        if self._fit and n_new > FIT_TOKENS and self._leaves_out(n - FIT_TOKENS):
            self._pools.store(layer, slot, n_held, n - FIT_TOKENS)
            with self._pools.fitting(layer, slot, self._fit.errors):
                self._fit.take_in(layer, slot, n - FIT_TOKENS)
        else:
            self._pools.store(layer, slot, n_held, n)
        self._stored[layer][slot] = n

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        ops.attend_yakv(out, attention.q, attention.k, attention.v, self._pools.layers[layer])

    def truncate(self, slot: int, n_held: int, n: int) -> int:
        """Tokens that return into the window come from their codes."""
        begin = indexed_end(n, self._shape.n_sinks, self._shape.window)
        for layer, stored in enumerate(self._stored):
            held = max(n_held, stored[slot])  # layers differ after an interrupted prompt
            end = min(n, indexed_end(held, self._shape.n_sinks, self._shape.window))
            if begin < end:
                self._pools.refill(layer, slot, held, begin, end)
            stored[slot] = n
        if not n:
            self._forget_tail_parts(slot)
        return n

    def state(self, slot: int, n_held: int) -> Mapping[str, StateArray]:
        """No numbers beside the pools: where everything lies follows from n_held."""
        return yakv_state(self._pools.state(slot, n_held), self._shape, n_held, self._pools.block_axis)

    def release(self, slot: int) -> None:
        for stored in self._stored:
            stored[slot] = 0
        self._slots.give_back(slot)

    def _leaves_out(self, n: int) -> bool:
        """Whether a step at position n selects fewer rows than are indexed."""
        budget = self._parameters.budget
        n_indexed = indexed_end(n, self._shape.n_sinks, self._shape.window) - self._shape.n_sinks
        return budget_of(n + 1, n_indexed, budget.ratio, budget.at_least, budget.min_len) < n_indexed

    def _forget_tail_parts(self, slot: int) -> None:
        for layer in range(len(self._pools.layers)):
            self._pools.set_tail_parts(layer, slot, self._parameters.tail_part)

    def stats(self) -> Mapping[str, float | str]:
        setting, shape = self._setting, self._shape
        taken = pools(setting.config, self._parameters, setting.kind, setting.ctx_size)
        heads = setting.config.n_layers * setting.config.n_kv_heads
        row = row_bytes(shape.head_dim, shape.k_format, shape.v_format) + 4
        block = SELECTORS[shape.selector].block_bytes(shape.head_dim) + 2 * shape.head_dim
        rows_read, hits, steps = self._pools.counted()
        return {
            "method": "yakv",
            "type": setting.kind,
            "ctx_size": setting.ctx_size,
            "n_slots": setting.n_slots,
            "bytes": setting.n_slots * taken.slot_bytes,
            "rows_read": rows_read,
            "gross_bytes": rows_read * row,
            "moved_bytes": (rows_read - hits) * row,
            "hit_rate": hits / max(1, rows_read),
            "device_bytes_per_token": heads * block / 64,
            "host_bytes_per_token": heads * row,
            "steps": steps,
        }
