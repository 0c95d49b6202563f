"""Which rows a method attended to in a decode step, read without a word of it in the method.

Methods in NumPy attend by rows.attend_rows over gathered rows. Every value row carries its position in the
lowest bits of its first channels, so the gathered values tell which rows they are; that moves a number by one
unit in the last place at most, and full attention is given the same values. YAKV's kernels leave the selected
ids in the step's scratch memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from decode_replay import Replay

from yakvrt.kernels.yakv_layout import indexed_end
from yakvrt.kvcache.contract import KvMethod, KvSetting
from yakvrt.kvcache.staging import element_type

# (layer, position) -> bool [heads that choose, position + 1], of the layer that ran last
Read = Callable[[int, int], np.ndarray]


class PositionMarks:
    """Positions in the lowest bits of values. Raises: ValueError where a head has too few channels."""

    def __init__(self, setting: KvSetting) -> None:
        n_bits = max(1, (setting.ctx_size - 1).bit_length())
        if n_bits > setting.config.head_dim:
            raise ValueError(f"{setting.ctx_size} positions do not fit in {setting.config.head_dim} channels")
        self._shifts = np.arange(n_bits)
        self._dtype = element_type(setting.kind)
        self._word = np.dtype(f"u{self._dtype.itemsize}")
        self._head_dim = setting.config.head_dim

    def mark(self, values: np.ndarray, first: int) -> np.ndarray:
        """Values of positions first, first + 1, ..., marked. Shapes: [n, Hk * D] -> float32 [n, Hk * D]."""
        words = values.astype(self._dtype).view(self._word).reshape(len(values), -1, self._head_dim)
        bits = (first + np.arange(len(values))[:, None] >> self._shifts & 1).astype(self._word)
        marked = words[..., : len(self._shifts)]
        words[..., : len(self._shifts)] = (marked | 1) ^ 1 | bits[:, None]
        return words.view(self._dtype).reshape(values.shape).astype(np.float32)

    def positions(self, values: np.ndarray) -> np.ndarray:
        """Shapes: marked values [..., D] -> [...]."""
        marked = np.ascontiguousarray(values[..., : len(self._shifts)].astype(self._dtype))
        found: np.ndarray = ((marked.view(self._word) & 1).astype(np.int64) << self._shifts).sum(axis=-1)
        return found


def _all_rows(n_heads: int) -> Read:
    return lambda layer, position: np.ones((n_heads, position + 1), bool)


def _yakv_rows(setting: KvSetting, method: Any, parameters: Any, replay: Replay) -> Read:
    """The ring, whose positions follow from the length, and the ids of the selection."""
    n_heads, n_tokens = setting.config.n_kv_heads, 64 * method._pools.layers[0].n_blocks
    scratch = replay.recorder.memory.shared
    ids = scratch("yakv_ids", n_heads * n_tokens * 4).view(np.int32).reshape(n_heads, n_tokens)
    counts = scratch("yakv_counts", n_heads * 8).view(np.int64)
    sinks = parameters.prefix_budget

    def rows(layer: int, position: int) -> np.ndarray:
        read = np.ones((n_heads, position + 1), bool)
        read[:, sinks : indexed_end(position, sinks, parameters.recent)] = False
        for head in range(n_heads):
            read[head, sinks + ids[head, : counts[head]]] = True
        return read

    return rows


@contextmanager
def reading(
    setting: KvSetting, module: ModuleType, method: KvMethod, parameters: Any, replay: Replay
) -> Iterator[Read | None]:
    """How to tell the rows that the replay's last layer attended to; None for a method that cannot be read.

    The replay's values must be marked, and so must be those of the prompt.
    """
    name = module.__name__.rpartition(".")[2]
    if name == "full":
        yield _all_rows(setting.config.n_kv_heads)
    elif name == "yakv":
        yield _yakv_rows(setting, method, parameters, replay)
    elif hasattr(module, "attend_rows"):
        with _watched(setting, module, parameters) as rows:
            yield rows
    else:
        yield None


@contextmanager
def _watched(setting: KvSetting, module: Any, parameters: Any) -> Iterator[Read]:
    """Replaces attend_rows in the method's module by itself with a look at the values it is given."""
    attend_rows, marks, seen = module.attend_rows, PositionMarks(setting), list[np.ndarray]()
    n_dense = getattr(parameters, "dense_layers", 0)
    whole = _all_rows(setting.config.n_kv_heads)

    def watched(
        q: np.ndarray, k: np.ndarray, v: np.ndarray, readable: np.ndarray | None = None
    ) -> np.ndarray:
        ids = marks.positions(v)
        seen[:] = [ids if readable is None else np.where(readable, ids, -1)]
        result: np.ndarray = attend_rows(q, k, v, readable)
        return result

    def rows(layer: int, position: int) -> np.ndarray:
        if layer < n_dense:
            return whole(layer, position)
        (ids,) = seen
        seen.clear()
        read = np.zeros((len(ids), position + 2), bool)  # the last column takes what is not readable
        read[np.arange(len(ids))[:, None], ids] = True
        return read[:, :-1]

    module.attend_rows = watched
    try:
        yield rows
    finally:
        module.attend_rows = attend_rows
