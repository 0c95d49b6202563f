"""ShadowKV (Sun et al., 2024, arXiv 2410.21465): keys of low rank on the device, values fetched by chunks.

Keys before RoPE lie near a space of `rank` dimensions, shared by all heads of a layer: K ~ U V^T. A chunk is
chosen by its landmark, the mean of its keys; chunks whose keys are unlike their mean (outliers), the last
chunks and generated tokens stay on the device exactly. Chunks of the step before are used again.

Differs: U s is K times the eigenvectors of K^T K, which equals the SVD's. The host holds keys too (the paper
drops them), so that a further prompt starts from exact rows; all low-rank state is then made anew, from keys
turned back by RoPE. Generated tokens cost a full row each on the device, as in the paper; on the CPU they are
read where the host's rows are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..cpu.exact_rows import ExactRows
from ..cpu.memory import reserved
from ..kernels.chosen_rows import attend_rows, group_weights, logits, page_rows, replace_missing, top
from ..kernels.rope_table import RopeTable
from ..kernels.select_topk import RULES
from ..ops import ELEMENT_BYTES, Buffer, KvRows, Ops, element_type
from .budget import budget_tokens, check_budget, check_choice, check_range
from .contract import BY_TOKEN, AttentionInput, KvSetting, Pools, StateArray, StepBytes
from .counters import Counters, method_stats
from .low_rank_keys import LowRankKeys, outlier_chunks
from .rows import attend_each
from .shadowkv_state import ShadowPrompt, ShadowSlot
from .slots import SlotList
from .staging import Staging, staging_bytes

if TYPE_CHECKING:
    from ..config import ModelConfig


@dataclass(frozen=True, slots=True)
class Parameters:
    """sparse_budget: tokens, or a share of the prompt, fetched in chunks per KV head and step.

    outliers, local: tokens in outlier chunks and in the last chunks of the prompt.
    Raises: ValueError for a value out of range.
    """

    sparse_budget: float = 2048
    rank: int = 160
    chunk: int = 8
    outliers: int = 384
    local: int = 32
    rule: str = "max"

    def __post_init__(self) -> None:
        check_budget("sparse_budget", self.sparse_budget)
        check_range("rank", self.rank, 1, 1 << 16)
        check_range("chunk", self.chunk, 1, 1024)
        check_range("outliers", self.outliers, 0, 1 << 20)
        check_range("local", self.local, 0, 1 << 20)
        check_choice("rule", self.rule, RULES)

    def chunks(self, n_tokens: int) -> int:
        """Chunks fetched in a step for a prompt of n_tokens."""
        return max(1, budget_tokens(self.sparse_budget, n_tokens) // self.chunk)

    def places(self, n_tokens: int) -> int:
        """Places for fetched chunks in a slot of n_tokens."""
        return min(self.chunks(n_tokens), max(1, n_tokens // self.chunk))


def host_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: L * Hk * 2 * D * element size (the paper's host holds V alone: half of it)."""
    return config.n_layers * config.n_kv_heads * 2 * config.head_dim * ELEMENT_BYTES[kind]


def device_bytes_per_token(config: ModelConfig, parameters: Parameters, kind: str) -> float:
    """Bytes: L * (2 * min(rank, Hk * D) + (element size * Hk * D + 4 * Hk) / chunk)."""
    width = config.n_kv_heads * config.head_dim
    landmark = ELEMENT_BYTES[kind] * width + 4 * config.n_kv_heads
    return config.n_layers * (2 * min(parameters.rank, width) + landmark / parameters.chunk)


def pools(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> Pools:
    """Bytes: the bytes per token; exact rows of outliers and last tokens, the basis of the keys, and the
    chunks of the step before. For a slot filled by its prompt: a generated token takes a full row.
    """
    width = config.n_kv_heads * config.head_dim
    row = 2 * width * ELEMENT_BYTES[kind]
    lasting = min(n_tokens, parameters.outliers + parameters.local + parameters.chunk)
    fetched = parameters.places(n_tokens) * parameters.chunk
    return Pools(
        device={
            "low-rank keys and landmarks": int(n_tokens * device_bytes_per_token(config, parameters, kind)),
            "basis": config.n_layers * 2 * min(parameters.rank, width) * width,
            "outliers and last tokens": config.n_layers * row * lasting,
            "fetched chunks": config.n_layers * row * fetched,
        },
        host={"keys and values": int(n_tokens * host_bytes_per_token(config, parameters, kind))},
        transient={
            "staging": staging_bytes(config, kind, n_tokens),
            "RoPE table": 4 * config.head_dim * n_tokens,
        },
    )


def step_bytes(config: ModelConfig, parameters: Parameters, kind: str, n_tokens: int) -> StepBytes:
    """Host bytes: values alone, L * Hk * rows * D * element size."""
    held, chunk = pools(config, parameters, kind, n_tokens).device, parameters.chunk
    left = n_tokens // chunk - parameters.local // chunk - parameters.outliers // chunk
    selected = max(0, min(parameters.chunks(n_tokens), left)) * chunk
    device = sum(n for name, n in held.items() if name != "fetched chunks")
    return StepBytes(device, selected * int(host_bytes_per_token(config, parameters, kind)) // 2)


def build(setting: KvSetting, parameters: Parameters) -> ShadowKv:
    return ShadowKv(setting, parameters)


class ShadowKv:
    """Low-rank keys on the device, values on the host."""

    def __init__(self, setting: KvSetting, parameters: Parameters) -> None:
        self._setting, self._parameters = setting, parameters
        self._free, self._slots = SlotList(setting), dict[int, ShadowSlot]()
        self._staging = Staging(setting)
        self._counters = Counters(setting.config.n_layers)
        self._rope = RopeTable(setting.inv_freq, setting.rope_scale, setting.ctx_size)
        self._dtype = element_type(setting.kind)

    def open(self, n_tokens: int) -> int:
        slot = self._free.take(n_tokens)
        config, kind, p = self._setting.config, self._setting.kind, self._parameters
        n_layers, n_heads, dim = config.n_layers, config.n_kv_heads, config.head_dim
        rank, most, places = min(p.rank, n_heads * dim), max(1, n_tokens // p.chunk), p.places(n_tokens)
        bf16 = element_type("bf16")
        landmarks = reserved((n_layers, n_heads, most, dim * self._dtype.itemsize)).view(self._dtype)
        self._slots[slot] = ShadowSlot(
            ExactRows(n_layers, n_heads, n_tokens, dim, kind),
            ExactRows(n_layers, n_heads, places * p.chunk, dim, kind),
            ExactRows(n_layers, n_heads, min(most, p.outliers // p.chunk) * p.chunk, dim, kind),
            reserved((n_layers, n_tokens, 2 * rank)).view(bf16),
            np.zeros((n_layers, n_heads, rank, dim), bf16),
            landmarks,
            np.zeros((n_layers, n_heads, most), np.int32),
            np.full((n_layers, n_heads, places), -1, np.int64),
            np.full(n_layers, -1, np.int64),
            np.zeros(n_layers, np.int64),
        )
        return slot

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        self._staging.write(0, *self._slots[slot].rows.read(layer, 0, n_held))

    def prefill(self, ops: Ops, layer: int, attention: AttentionInput) -> KvRows:
        ops.kv_append(self._staging.rows, attention.k, attention.v)
        return self._staging.rows

    def store(self, layer: int, slot: int, n_held: int, n_new: int) -> None:
        held, n = self._slots[slot], n_held + n_new
        held.rows.write(layer, n_held, *self._staging.read(n_held, n))
        self._summarise(held, layer, n)

    def _summarise(self, held: ShadowSlot, layer: int, n: int) -> None:
        """Makes a layer's state from the rows of n tokens."""
        p, config = self._parameters, self._setting.config
        n_chunks = max(0, n // p.chunk - p.local // p.chunk)
        tail = n_chunks * p.chunk
        k, _ = held.rows.read(layer, 0, n)
        chunks = k[:, :tail].reshape(config.n_kv_heads, n_chunks, p.chunk, config.head_dim)
        landmarks = chunks.mean(axis=2)
        outliers, numbers = outlier_chunks(chunks, landmarks, min(n_chunks, p.outliers // p.chunk))
        heads, others = np.arange(config.n_kv_heads)[:, None], slice(numbers.shape[1])
        keys = LowRankKeys.of(self._rope.unrotate(k), tail, p.rank)
        held.left[layer, :tail], held.basis[layer] = keys.left, keys.basis
        held.landmarks[layer, :, others] = landmarks[heads, numbers]
        held.numbers[layer, :, others] = numbers
        held.outliers.write(layer, 0, *held.rows.take(layer, page_rows(outliers, p.chunk)))
        held.fetched[layer] = -1
        held.n_chunks[layer], held.prompt[layer] = n_chunks, n

    def _prompt(self, held: ShadowSlot, layer: int) -> ShadowPrompt:
        p, n_chunks = self._parameters, int(held.n_chunks[layer])
        others = n_chunks - (n_outliers := min(n_chunks, p.outliers // p.chunk))
        return ShadowPrompt(
            n_chunks * p.chunk,
            LowRankKeys(held.left[layer], held.basis[layer]),
            held.landmarks[layer, :, :others],
            held.numbers[layer, :, :others],
            held.outliers.read(layer, 0, n_outliers * p.chunk),
            held.fetched[layer, :, : p.chunks(int(held.prompt[layer]))],
        )

    def decode(self, ops: Ops, layer: int, attention: AttentionInput, out: Buffer) -> None:
        def attend(slot: int, position: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
            return self._attend(self._slots[slot], layer, position, q, k, v)

        attend_each(ops, self._setting.config, attention, out, attend)

    def _attend(
        self, held: ShadowSlot, layer: int, position: int, q: np.ndarray, k: np.ndarray, v: np.ndarray
    ) -> np.ndarray:
        p, n_heads, dim = self._parameters, len(q), q.shape[-1]
        if held.n_chunks[layer] < 0:
            self._summarise(held, layer, position)
        prompt = self._prompt(held, layer)
        held.rows.write(layer, position, k[:, None], v[:, None])
        parts = [held.rows.read(layer, prompt.tail, position + 1), prompt.outliers]
        count, n_hit = min(prompt.fetched.shape[1], prompt.landmarks.shape[1]), 0
        if count:
            scaled = logits(q, prompt.landmarks) * np.float32(dim**-0.5)
            chosen = top(group_weights(scaled, p.rule), count)
            n_hit = n_heads * count - self._fetch(held, layer, prompt, chosen)
            parts.append(held.recent.read(layer, 0, count * p.chunk))
        keys, values = (np.concatenate(rows, axis=1) for rows in zip(*parts, strict=True))
        self._counters.add(
            layer,
            read=n_heads * keys.shape[1],
            asked=n_heads * count * p.chunk,
            hit=n_hit * p.chunk,
            row_bytes=dim * ELEMENT_BYTES[self._setting.kind],
        )
        return attend_rows(q, keys, values)

    def _fetch(self, held: ShadowSlot, layer: int, prompt: ShadowPrompt, chosen: np.ndarray) -> int:
        """Computes keys and fetches values of the chosen chunks that are not there yet; returns how many."""
        p = self._parameters
        numbers = np.take_along_axis(prompt.numbers, chosen, axis=1)
        fetched = prompt.fetched[:, : chosen.shape[1]]
        heads, places, chunks = replace_missing(fetched, numbers, held.landmarks.shape[2])
        positions, heads_of_rows = page_rows(chunks, p.chunk), np.repeat(heads, p.chunk)
        keys = self._rope.rotate(prompt.keys.rows(heads_of_rows, positions), positions)
        held.recent.values_from(layer, heads_of_rows, page_rows(places, p.chunk), keys, held.rows, positions)
        return len(chunks)

    def truncate(self, slot: int, n_held: int, n: int) -> int:
        held = self._slots[slot]
        cut = n < held.n_chunks * self._parameters.chunk
        held.n_chunks[cut], held.fetched[cut], held.numbers[cut] = -1, -1, 0
        np.minimum(held.prompt, n, out=held.prompt)
        return n

    def state(self, slot: int, n_held: int) -> Mapping[str, StateArray]:
        held, p = self._slots[slot], self._parameters
        full, places = n_held // p.chunk, p.places(n_held)
        return {
            "rows": StateArray(held.rows.first(n_held), rows=BY_TOKEN),
            "recent": StateArray(held.recent.first(places * p.chunk)),
            "outliers": StateArray(held.outliers.first(min(full, p.outliers // p.chunk) * p.chunk)),
            "left": StateArray(held.left[:, :n_held]),
            "basis": StateArray(held.basis),
            "landmarks": StateArray(held.landmarks[:, :, :full]),
            "numbers": StateArray(held.numbers[:, :, :full], (0, max(0, full - 1))),
            "fetched": StateArray(held.fetched[:, :, :places], (-1, full - 1)),
            "n_chunks": StateArray(held.n_chunks, (-1, full)),
            "prompt": StateArray(held.prompt, (0, n_held)),
        }

    def release(self, slot: int) -> None:
        del self._slots[slot]
        self._free.give_back(slot)

    def stats(self) -> Mapping[str, float | str]:
        setting = self._setting
        of = setting.config, self._parameters, setting.kind
        return method_stats(
            "shadowkv",
            setting,
            pools(*of, setting.ctx_size),
            self._counters,
            device_bytes_per_token(*of),
            host_bytes_per_token(*of),
        )
