"""Records how rows of float32 become YAKV's codes: the selector's, and those of keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..kernel_build.spec import kernel
from ..kernels.higgs_encode_cuda import rows_of_a_block
from ..kernels.higgs_layout import META_TOKENS, ROW_FORMATS, SELECTORS, RowFormat, row_bytes
from ..kernels.rotate import rotation_lanes
from .device_array import DeviceArray
from .device_grid import Grid
from .yakv_pools import RowPool, YakvRows

Launcher = Callable[..., None]  # (kernel, grid, *arguments)


@dataclass(frozen=True, slots=True)
class BlockRows:
    """Keys and values that become indexed rows firsts[b] .. lasts[b] - 1 of the slots of a batch.

    Shapes: k and v float32 [slots][Hk][rows][D], at most n_rows_each a head, strides in numbers; the row
    firsts[b] lies at sources[b]. slots, firsts, lasts, sources int64 [n_batch], n_rows int64 [1].
    """

    k: DeviceArray
    v: DeviceArray
    slot_stride: int
    head_stride: int
    n_rows_each: int
    n_batch: int
    slots: DeviceArray
    firsts: DeviceArray
    lasts: DeviceArray
    sources: DeviceArray
    n_rows: DeviceArray


def pool_words(rows: YakvRows, pool: RowPool, n_kv_heads: int) -> tuple[Any, ...]:
    """Codes and scales of a pool, each with its strides in words."""
    shape = rows.shape
    head = pool.n_rows * (row_bytes(shape.head_dim, shape.k_format, shape.v_format) // 4)
    return pool.codes, n_kv_heads * head, head, pool.scales, n_kv_heads * pool.n_rows, pool.n_rows


def record_codes(launch: Launcher, rows: YakvRows, n_kv_heads: int, blocks: BlockRows) -> None:
    """Blocks begin at multiples of 64 rows. The keys are left changed where they rest as residuals, and the
    values where the selector has mean rows: they make room for what these leave of the keys.
    """
    shape, heads, head_dim = rows.shape, n_kv_heads, rows.shape.head_dim
    rows_at_once = 128 // rotation_lanes(head_dim)

    def encode(layout: str, centred: bool, codes: Any, scales: Any, source: DeviceArray, grid: Grid) -> None:
        spec = (grid.dim, grid.n_points, layout, head_dim, "norm", centred, False)
        launch(
            kernel("higgs_encode_cuda", "higgs_encode_cuda", *spec),
            (-(-blocks.n_rows_each // rows_of_a_block(head_dim)), blocks.n_batch * heads),
            *(*codes, *scales, source, blocks.slot_stride, blocks.head_stride, rows.means, heads * head_dim),
            *(grid.memory, blocks.slots, heads, blocks.firsts, blocks.lasts, blocks.sources, blocks.n_rows),
        )

    codes, codes_slot, codes_head, scales, scales_slot, scales_head = pool_words(rows, rows.rows, heads)
    row_words = row_bytes(head_dim, shape.k_format, shape.v_format) // 4

    def encode_rows(i: int, row_format: RowFormat, centred: bool, source: DeviceArray, grid: Grid) -> None:
        """The keys, 0, or the values, 1, of host rows."""
        own_codes = (codes.address + i * k_format.n_bytes(head_dim), codes_slot, codes_head, row_words)
        own_scales = (scales.address + 2 * i, 2 * scales_slot, 2 * scales_head, 2)
        encode("sixes" if row_format.sixes else "bytes", centred, own_codes, own_scales, source, grid)

    k_format, v_format = ROW_FORMATS[shape.k_format], ROW_FORMATS[shape.v_format]
    encode_rows(1, v_format, False, blocks.v, rows.v_grid)
    block_bytes = SELECTORS[shape.selector].block_bytes(head_dim)
    head = rows.n_blocks * block_bytes
    keys, centred = blocks.k, shape.centred
    if rows.mean_grid:
        keys, centred = blocks.v, False
        launch(
            kernel("higgs_means_cuda", "higgs_means_cuda", shape.selector, head_dim, shape.centred),
            (-(-blocks.n_rows_each // (META_TOKENS * rows_at_once)), blocks.n_batch * heads),
            *(keys, rows.selectors, heads * head // 2, head // 2, blocks.k, blocks.slot_stride),
            *(blocks.head_stride, rows.means, heads * head_dim, rows.mean_grid.memory, blocks.slots, heads),
            *(blocks.firsts, blocks.lasts, blocks.sources, blocks.n_rows),
        )
    own_codes = (rows.selectors, heads * head // 4, head // 4, block_bytes // 4)
    own_scales = (rows.selectors, heads * head // 2, head // 2, 1)
    encode("blocks", centred, own_codes, own_scales, keys, rows.selector_grid)
    if k_format.residual:
        launch(
            kernel("higgs_residual_cuda", "higgs_residual_cuda", shape.selector, head_dim, shape.centred),
            (-(-blocks.n_rows_each // rows_at_once), blocks.n_batch * heads),
            *(blocks.k, blocks.slot_stride, blocks.head_stride, rows.selectors, heads * head // 4, head // 4),
            *(*rows.selector_words, rows.means, heads * head_dim, blocks.slots, heads, blocks.firsts),
            *(blocks.lasts, blocks.sources, blocks.n_rows),
        )
    encode_rows(0, k_format, shape.centred and not k_format.residual, blocks.k, rows.k_grid)
