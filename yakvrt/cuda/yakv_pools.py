"""YAKV's pools for a GPU: what scoring needs on the device, rows of codes there or in pinned host memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.attend_fragments import HEAD_DIMS
from ..kernels.higgs_layout import (
    BLOCK_TOKENS,
    ROW_FORMATS,
    SELECTORS,
    row_bytes,
)
from ..kernels.yakv_attend_cuda import FORMATS
from ..kernels.yakv_fetch import most_selected
from ..kernels.yakv_fetch_cuda import directory_words
from ..kernels.yakv_layout import MOST_PLACES, Budget, YakvShape
from ..ops import ELEMENT_BYTES
from .device_array import DeviceArray
from .device_grid import Grid, device_grid
from .memory import PinnedMemory
from .pinned_pool import padded_bytes

if TYPE_CHECKING:
    from .backend import CudaBackend

MOST_GROUPED = 16  # query heads of a KV head


@dataclass(frozen=True, slots=True)
class RowPool:
    """Rows of codes, K before V, and their scales, float16 of K and of V.

    Shapes: codes uint32 [slots, Hk, n_rows, row words], scales uint32 [slots, Hk, n_rows].
    """

    codes: DeviceArray | PinnedMemory
    scales: DeviceArray | PinnedMemory
    n_rows: int


@dataclass(frozen=True, slots=True)
class YakvRows:
    """One layer.

    Shapes: ring_k, ring_v 16-bit numbers in pairs [slots, Hk, sinks + window + 64, D], selectors uint32
    [slots, Hk, blocks of 64 tokens], values uint32 (float16 pairs) [slots, Hk, blocks, D / 2], means float32
    [slots, Hk, D], tail_parts float32 [slots, Hk, G]; counters int64 [3], of yakv_count_cuda. Shared by all
    layers: whole_tail, as tail_parts, all 1; k_block and v_block float32 [slots, Hk, 64, D], of a block that
    is encoded. With a cache, `cached` are the rows on the device. mean_grid: of the selector's mean rows, if
    it has any. most_selected: rows of a head in a step, at least 1.
    """

    shape: YakvShape
    budget: Budget
    n_slots: int
    n_blocks: int
    most_selected: int
    ring_k: DeviceArray
    ring_v: DeviceArray
    selectors: DeviceArray
    values: DeviceArray
    means: DeviceArray
    tail_parts: DeviceArray
    whole_tail: DeviceArray
    counters: DeviceArray
    k_block: DeviceArray
    v_block: DeviceArray
    rows: RowPool
    cached: RowPool | None
    directory: DeviceArray | None
    selector_grid: Grid
    mean_grid: Grid | None
    k_grid: Grid
    v_grid: Grid

    @property
    def selector_words(self) -> tuple[int, float, int | None, float]:
        """Of the selector's grid, then of that of its mean rows."""
        means = self.mean_grid.words if self.mean_grid else (None, 0.0)
        return *self.selector_grid.words, *means

    @property
    def selector_bytes(self) -> int:
        """Of all KV heads of a slot."""
        block_bytes = SELECTORS[self.shape.selector].block_bytes(self.shape.head_dim)
        return self.means.shape[1] * self.n_blocks * block_bytes

    @property
    def rows_shape(self) -> tuple[int, int, int, int]:
        """Of the codes of `rows`, in words."""
        shape = self.shape
        words = row_bytes(shape.head_dim, shape.k_format, shape.v_format) // 4
        return self.n_slots, self.means.shape[1], self.rows.n_rows, words

    @property
    def ring_places(self) -> int:
        return self.shape.n_sinks + self.shape.window + BLOCK_TOKENS


def check_yakv(shape: YakvShape) -> None:
    """Raises: ValueError for what has no CUDA kernels yet."""
    if shape.head_dim not in HEAD_DIMS:
        sizes = ", ".join(map(str, HEAD_DIMS))
        raise ValueError(
            f"on a GPU, YAKV takes heads of {sizes} numbers, and the model's have {shape.head_dim}: take"
            " another KV method, or the CPU"
        )
    if shape.group > MOST_GROUPED:
        raise ValueError(
            f"on a GPU, YAKV takes up to {MOST_GROUPED} query heads for each KV head, and the model has"
            f" {shape.group}: take another KV method, or the CPU"
        )
    if (shape.k_format, shape.v_format) not in FORMATS:
        raise ValueError(
            "on a GPU, YAKV's rows hold r3 or 4 bits of a key, 4 of a value: take k_bits=r3 or 4, v_bits=4"
        )
    if shape.kind == "f32":
        raise ValueError("on a GPU, YAKV's exact rows are f16 or bf16: take -ctk f16 or bf16")


def check_cache(n_places: int, most_selected: int) -> None:
    """Of rows from the host. Raises: ValueError where it does not hold what a step selects of a head."""
    if n_places < most_selected:
        raise ValueError(
            f"on a GPU, YAKV's rows from the host pass through a cache, which holds {n_places} of a head"
            f" where a step selects up to {most_selected}: give slot_cache=1 or more, a budget of up to"
            f" {MOST_PLACES}, or --kv-device gpu"
        )


class YakvPools:
    """The pools of all layers and slots; `on_host` rows are read through a cache of n_places rows a head."""

    def __init__(
        self,
        backend: CudaBackend,
        n_layers: int,
        n_slots: int,
        n_kv_heads: int,
        n_tokens: int,
        shape: YakvShape,
        budget: Budget,
        *,
        on_host: bool,
        n_places: int,
    ) -> None:
        """Raises: ValueError for what has no kernels, DeviceError."""
        check_yakv(shape)
        most = most_selected(n_tokens, shape.n_sinks, shape.window, budget)
        if on_host:
            check_cache(n_places, most)
        n_places = max(n_places, 1)  # of a slot too short to index anything
        heads, head_dim = (n_slots, n_kv_heads), shape.head_dim
        n_blocks = max(1, -(-(n_tokens - shape.n_sinks) // BLOCK_TOKENS))
        n_rows = n_blocks * BLOCK_TOKENS
        row_words = row_bytes(head_dim, shape.k_format, shape.v_format) // 4
        block_words = SELECTORS[shape.selector].block_bytes(head_dim) // 4
        ring = (
            *heads,
            shape.n_sinks + shape.window + BLOCK_TOKENS,
            head_dim * ELEMENT_BYTES[shape.kind] // 4,
        )

        def grid(name: str | None) -> Grid:
            return device_grid(backend, name or "")

        def rows_on_device(n: int) -> RowPool:
            return RowPool(
                backend.array((*heads, n, row_words), np.uint32), backend.array((*heads, n), np.uint32), n
            )

        sizes = [4 * n_slots * n_kv_heads * n_rows * n for n in (row_words, 1)]
        pinned = backend.pinned_pool(n_layers * padded_bytes(sizes)) if on_host else None

        def rows_pool() -> RowPool:
            if pinned is None:
                return rows_on_device(n_rows)
            codes, scales = (pinned.take(n) for n in sizes)
            return RowPool(codes, scales, n_rows)

        selector = SELECTORS[shape.selector]
        selector_grid = grid(selector.grid)
        mean_grid = grid(selector.mean_grid) if selector.mean_grid else None
        k_grid, v_grid = (grid(ROW_FORMATS[name].grid) for name in (shape.k_format, shape.v_format))
        block = (*heads, BLOCK_TOKENS, head_dim)
        k_block, v_block = backend.array(block, np.float32), backend.array(block, np.float32)
        whole_tail = backend.put(np.ones((*heads, shape.group), np.float32))
        directory = np.zeros((*heads, directory_words(n_places, n_rows)), np.int32)
        self.layers = [
            YakvRows(
                shape,
                budget,
                n_slots,
                n_blocks,
                max(most, 1),
                ring_k=backend.array(ring, np.uint32),
                ring_v=backend.array(ring, np.uint32),
                selectors=backend.array((*heads, n_blocks, block_words), np.uint32),
                values=backend.array((*heads, n_blocks, head_dim // 2), np.uint32),
                means=backend.array((*heads, head_dim), np.float32),
                tail_parts=backend.array((*heads, shape.group), np.float32),
                whole_tail=whole_tail,
                counters=backend.put(np.zeros(3, np.int64)),
                k_block=k_block,
                v_block=v_block,
                rows=rows_pool(),
                cached=rows_on_device(n_places) if on_host else None,
                directory=backend.put(directory) if on_host else None,
                selector_grid=selector_grid,
                mean_grid=mean_grid,
                k_grid=k_grid,
                v_grid=v_grid,
            )
            for _ in range(n_layers)
        ]
