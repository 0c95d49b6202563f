"""YAKV's pools on the CPU, and the jobs that move rows between them and a prompt's exact rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..higgs_grids import load_grid
from ..kernel_build.spec import KernelSpec, kernel
from ..kernels.higgs_layout import BLOCK_TOKENS, ROW_FORMATS, SELECTORS, pack_tables, row_bytes
from ..kernels.yakv_fetch import directory_bytes
from ..kernels.yakv_fit import best_parts
from ..kernels.yakv_layout import POOL_WORDS, Budget, YakvShape, indexed_end
from ..kernels.yakv_store import store_scratch_bytes
from ..ops import ELEMENT_BYTES, Buffer, KvRows
from .memory import aligned, padded, reserved
from .tape import Tape

_COUNTERS = [POOL_WORDS.index(name) for name in ("rows_read", "hits", "steps")]
_ROW_WORDS = tuple(f"{name}{suffix}" for name in ("rows", "scales") for suffix in ("", "_slot", "_head"))


@dataclass(frozen=True, slots=True)
class YakvRows:
    """One layer. `table` holds what kernels need to know of the pools (yakv_layout.POOL_WORDS)."""

    table: np.ndarray
    attend_table: np.ndarray  # the same, or with a cache's pools in place of rows and scales
    shape: YakvShape
    budget: Budget
    n_blocks: int  # of the longest slot
    n_places: int  # of the cache of rows; 0: none


def pool_bytes(shape: YakvShape, n_blocks: int, n_places: int) -> dict[str, int]:
    """Bytes of one layer, slot and kv head by pool."""
    ring = shape.ring_places * shape.head_dim * ELEMENT_BYTES[shape.kind]
    row = row_bytes(shape.head_dim, shape.k_format, shape.v_format)
    cache = {
        "cached_rows": n_places * row,
        "cached_scales": n_places * 4,
        "directory": directory_bytes(n_places, n_blocks * BLOCK_TOKENS),
    }
    return {
        "ring_k": ring,
        "ring_v": ring,
        "selectors": n_blocks * SELECTORS[shape.selector].block_bytes(shape.head_dim),
        "rows": n_blocks * BLOCK_TOKENS * row,
        "scales": n_blocks * BLOCK_TOKENS * 4,
        "values": n_blocks * shape.head_dim * 2,
        "means": shape.head_dim * 4,
        "tail_parts": shape.group * 4,
        **(cache if n_places else {}),
    }


class YakvPools:
    """The pools of all layers and slots. Owns: their memory, whose pages are taken when first written.

    `run` replays a tape; `staging` are the exact rows of the prompt under way; n_places are those of a head
    in the cache of rows, 0 for none. block_axis: along which blocks lie in what state() gives.
    """

    block_axis = 2

    def __init__(
        self,
        run: Callable[[Tape], None],
        n_threads: int,
        n_layers: int,
        n_slots: int,
        n_kv_heads: int,
        n_tokens: int,
        shape: YakvShape,
        budget: Budget,
        staging: KvRows,
        n_places: int,
    ) -> None:
        self._run, self._shape = run, shape
        n_blocks = max(1, -(-(n_tokens - shape.n_sinks) // BLOCK_TOKENS))
        sizes = {name: padded(n, 64) for name, n in pool_bytes(shape, n_blocks, n_places).items()}
        self._pools = {name: reserved((n_layers, n_slots, n_kv_heads, size)) for name, size in sizes.items()}
        selector = SELECTORS[shape.selector]
        grids = (
            selector.grid,
            selector.mean_grid,
            ROW_FORMATS[shape.k_format].grid,
            ROW_FORMATS[shape.v_format].grid,
        )
        self._tables = {name: pack_tables(load_grid(name)) for name in set(grids) if name}
        words = [self._tables[name].ctypes.data if name else 0 for name in grids]
        self.layers = []
        for layer in range(n_layers):
            values = {name: int(pool[layer].ctypes.data) for name, pool in self._pools.items()}
            values |= {"n_kv_heads": n_kv_heads, "n_places": n_places}
            values |= dict(
                zip(("selector_tables", "mean_tables", "k_tables", "v_tables"), words, strict=True)
            )
            for name, size in sizes.items():
                values |= {f"{name}_slot": n_kv_heads * size, f"{name}_head": size}
            table = np.array([values.get(name, 0) for name in POOL_WORDS], np.int64)
            attended = table
            if n_places:
                cached = {word: values[f"cached_{word}"] for word in _ROW_WORDS}
                attended = np.array([(values | cached).get(name, 0) for name in POOL_WORDS], np.int64)
            self.layers.append(YakvRows(table, attended, shape, budget, n_blocks, n_places))
        self._numbers = {name: np.zeros(1, np.int64) for name in ("slot", "held", "total", "first", "last")}
        stride = padded(store_scratch_bytes(shape.head_dim), 64)
        self._scratch = aligned(n_threads * stride)
        self._staging = staging
        number = self._numbers
        target = (staging.k, staging.v, staging.head_bytes, number["slot"], number["held"])
        scratch = (self._scratch, stride)
        span = (number["first"], number["last"])
        store, recall = self.specs
        self._store: list[Tape] = []
        self._restore: list[Tape] = []
        self._refill: list[Tape] = []
        for layer_rows in self.layers:
            tapes = Tape(), Tape(), Tape()
            for phase in (0, 1):
                tapes[0].add(store, layer_rows.table, *target, number["total"], *scratch, phase)
            tapes[1].add(recall, layer_rows.table, *target, *span, 0, *scratch)
            tapes[2].add(recall, layer_rows.table, *target, *span, 1, *scratch)
            for tape, kept in zip(tapes, (self._store, self._restore, self._refill), strict=True):
                kept.append(tape)

    @property
    def specs(self) -> tuple[KernelSpec, KernelSpec]:
        """The kernels that it runs itself."""
        parameters = self._shape.parameters
        store = kernel("yakv_store", "yakv_store_cpu", *parameters)
        return store, kernel("yakv_store", "yakv_recall_cpu", *parameters)

    def store(self, layer: int, slot: int, n_held: int, n_tokens: int) -> None:
        """Takes over the exact rows at positions n_held .. n_tokens - 1 of the prompt under way."""
        self._set(slot=slot, held=n_held, total=n_tokens)
        self._run(self._store[layer])

    def restore(self, layer: int, slot: int, n_held: int) -> None:
        """Writes the first n_held rows where a prompt's exact rows lie, indexed ones as their codes tell."""
        self._set(slot=slot, held=n_held, first=0, last=n_held)
        self._run(self._restore[layer])

    def refill(self, layer: int, slot: int, n_held: int, first: int, last: int) -> None:
        """Indexed positions first .. last - 1 of a slot of n_held tokens return to the ring."""
        self._set(slot=slot, held=n_held, first=first, last=last)
        self._run(self._refill[layer])

    def state(self, slot: int, n_held: int) -> dict[str, np.ndarray]:
        """What n_held tokens of a slot occupy. Shapes: uint8 [L, Hk, bytes], views.

        Whoever gets them may write them, so the slot's cache of rows is emptied.
        """
        shape = self._shape
        n_blocks = (indexed_end(n_held, shape.n_sinks, shape.window) - shape.n_sinks) // BLOCK_TOKENS
        if "directory" in self._pools:
            self._pools["directory"][:, slot] = 0
        sizes = pool_bytes(shape, n_blocks, n_places=0)
        return {name: self._pools[name][:, slot, :, :size] for name, size in sizes.items()}

    @contextmanager
    def fitting(self, layer: int, slot: int, errors: Buffer) -> Iterator[None]:
        """Steps that run inside count all of the slot's tail, and in no statistics; behind them it counts as
        `errors` tell (yakv_fit.py), or as before where they are interrupted.
        """
        table, parts = self.layers[layer].table, self._tail_parts(layer, slot)
        counted, found = table[_COUNTERS], parts.copy()
        parts[:] = 1
        try:
            yield
            found = best_parts(errors.data).reshape(parts.shape)
        finally:
            parts[:] = found
            table[_COUNTERS] = counted

    def counted(self) -> tuple[int, int, int]:
        """Since the start: selected rows of all heads, how many of them were cached, tokens decoded."""
        each = np.array([rows.table[_COUNTERS] for rows in self.layers])
        return int(each[:, 0].sum()), int(each[:, 1].sum()), int(each[0, 2])

    def tail_parts(self, layer: int, slot: int) -> np.ndarray:
        """How much of the tail counts for every query head. Shapes: float32 [Hk, G]."""
        return self._tail_parts(layer, slot).copy()

    def set_tail_parts(self, layer: int, slot: int, parts: np.ndarray | float) -> None:
        """Shapes: [Hk, G], or one number for all."""
        self._tail_parts(layer, slot)[:] = parts

    def _tail_parts(self, layer: int, slot: int) -> np.ndarray:
        return self._pools["tail_parts"].view(np.float32)[layer, slot, :, : self._shape.group]

    def _set(self, **values: int) -> None:
        for name, value in values.items():
            self._numbers[name][0] = value
