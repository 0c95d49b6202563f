"""Which rows a method attended to in a decode step, read without a word of it in the method.

Methods in NumPy attend by attend_rows over gathered rows (chosen_rows.py). Every value row carries its
position in the lowest bits of its first channels (value_marks.py), so the gathered values tell which rows
they are; that moves a number by one unit in the last place at most, and full attention is given the same
values. YAKV's kernels leave the selected ids in the step's scratch memory. The paper's YAKV decodes the rows
it chose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from decode_replay import Replay
from value_marks import ValueMarks

from yakvrt.cpu import chunk_pools, page_pools
from yakvrt.kernels.yakv_layout import indexed_end
from yakvrt.kvcache.contract import KvSetting
from yakvrt.kvcache.paged import PagedKv

# (layer, position) -> bool [heads that choose, position + 1] of the layer that ran last; None: not known
Read = Callable[[int, int], np.ndarray | None]


@contextmanager
def reading(
    setting: KvSetting, module: ModuleType, method: Any, parameters: Any, replay: Replay
) -> Iterator[Read]:
    """How to tell the rows that the replay's last layer attended to, while the method decodes marked values.

    A method that attends in another way, or over values that are not those of the prompt, is not known.
    """
    name = module.__name__.rpartition(".")[2]
    attending: Any = module
    if isinstance(method, PagedKv):
        attending = chunk_pools if name == "shadowkv" else page_pools
    if name == "full":
        yield _all_rows(setting)
    elif name == "yakv":
        yield _yakv_rows(setting, method, parameters, replay)
    elif name == "yakv_paper":
        yield _paper_rows(setting, method, parameters)
    elif hasattr(attending, "attend_rows"):
        with _watched(setting, attending, parameters) as rows:
            yield rows
    else:
        yield lambda layer, position: None


def _all_rows(setting: KvSetting) -> Read:
    return lambda layer, position: np.ones((setting.config.n_kv_heads, position + 1), bool)


def _but(read: np.ndarray | None, first: int, end: int, chosen: list[np.ndarray]) -> np.ndarray | None:
    """Of positions first to end - 1 only those chosen, by head."""
    if read is not None:
        read[:, first:end] = False
        for of_head, ids in zip(read, chosen, strict=True):
            of_head[ids] = True
    return read


def _yakv_rows(setting: KvSetting, method: Any, parameters: Any, replay: Replay) -> Read:
    """Sinks and window, which follow from the length, and the ids of the selection behind the sinks."""
    n_heads, n_tokens = setting.config.n_kv_heads, 64 * method._pools.layers[0].n_blocks
    scratch, whole = replay.recorder.memory.shared, _all_rows(setting)
    ids = scratch("yakv_ids", n_heads * n_tokens * 4).view(np.int32).reshape(n_heads, n_tokens)
    counts = scratch("yakv_counts", n_heads * 8).view(np.int64)
    sinks = parameters.prefix_budget

    def rows(layer: int, position: int) -> np.ndarray | None:
        chosen = [sinks + of_head[:count] for of_head, count in zip(ids, counts, strict=True)]
        end = indexed_end(position, sinks, parameters.recent)
        return _but(whole(layer, position), sinks, end, chosen)

    return rows


def _paper_rows(setting: KvSetting, method: Any, parameters: Any) -> Read:
    """First, last and generated rows, and those whose codes are decoded."""
    pools = method._pools
    decoded, whole, seen = pools._decoded, _all_rows(setting), list[np.ndarray]()

    def watched(held: Any, layer: int, positions: np.ndarray) -> Any:
        seen[:] = positions
        return decoded(held, layer, positions)

    def rows(layer: int, position: int) -> np.ndarray | None:
        (held,) = pools._slots.values()
        end = held.ends[layer]
        return _but(whole(layer, position), min(parameters.prefix_budget, end), end, seen)

    pools._decoded = watched
    return rows


@contextmanager
def _watched(setting: KvSetting, module: Any, parameters: Any) -> Iterator[Read]:
    """Replaces attend_rows in a module by itself with a look at the values it is given."""
    attend_rows, marks, seen = module.attend_rows, ValueMarks(setting), list[np.ndarray]()
    n_dense, whole = getattr(parameters, "dense_layers", 0), _all_rows(setting)

    def watched(
        q: np.ndarray, k: np.ndarray, v: np.ndarray, readable: np.ndarray | None = None
    ) -> np.ndarray:
        positions = marks.positions(v)
        seen[:] = positions if readable is None else [p[r] for p, r in zip(positions, readable, strict=True)]
        result: np.ndarray = attend_rows(q, k, v, readable)
        return result

    def rows(layer: int, position: int) -> np.ndarray | None:
        if layer < n_dense:
            return whole(layer, position)
        found = np.zeros((len(seen), position + 1), bool)
        if any(ids.max() > position for ids in seen):
            return None  # values without marks: rows that are not exact
        return _but(found, 0, 0, seen)

    module.attend_rows = watched
    try:
        yield rows
    finally:
        module.attend_rows = attend_rows
