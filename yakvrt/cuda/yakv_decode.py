"""Indexed rows of a slot, decoded by the host from the codes that a GPU holds."""

from __future__ import annotations

import numpy as np

from ..higgs_grids import load_grid
from ..kernels.higgs_layout import BLOCK_TOKENS, ROW_FORMATS, SELECTORS
from ..kernels.higgs_residual import estimate_ref
from ..kernels.higgs_rows import decode_rows_ref
from ..kernels.rotate import rotation
from .device_array import DeviceArray
from .memory import PinnedMemory
from .stream import Stream
from .yakv_pools import YakvRows


def decoded_rows(
    rows: YakvRows, slot: int, first: int, last: int, stream: Stream
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of indexed rows first .. last - 1, counted from the first block on.

    Shapes: float32 [Hk, n, D] each.
    """
    shape, n_heads = rows.shape, rows.means.shape[1]
    k_format, v_format = ROW_FORMATS[shape.k_format], ROW_FORMATS[shape.v_format]
    codes = of_slot(rows.rows.codes, rows.rows_shape, slot, stream)[:, first:last].view(np.uint8)
    scales = of_slot(rows.rows.scales, rows.rows_shape[:3], slot, stream)[:, first:last].view(np.float16)
    scales = scales.reshape(n_heads, last - first, 2)
    k_bytes = k_format.n_bytes(shape.head_dim)
    v_bytes = v_format.n_bytes(shape.head_dim)
    means = rows.means.part(slot, 1).get(1, stream)[0]
    k_grid, v_grid = (load_grid(held.grid) if held.grid else None for held in (k_format, v_format))
    k, v = (np.empty((n_heads, last - first, shape.head_dim), np.float32) for _ in range(2))
    for head in range(n_heads):
        own, scale = codes[head], scales[head]
        v_codes = own[:, k_bytes : k_bytes + v_bytes]
        v[head] = decode_rows_ref(shape.v_format, v_codes, scale[:, 1], v_grid, rotated=False)
        k[head] = decode_rows_ref(shape.k_format, own[:, :k_bytes], scale[:, 0], k_grid, rotated=False)
    if k_format.residual:
        k += _estimates(rows, slot, first, last, stream)
    if shape.centred and k_format.rotated:
        k += means[:, None]
    return k, v


def _estimates(rows: YakvRows, slot: int, first: int, last: int, stream: Stream) -> np.ndarray:
    """What the selector's codes take keys to be, less their mean. Shapes: [Hk, n, D]."""
    shape = rows.shape
    begin, end = first // BLOCK_TOKENS, -(-last // BLOCK_TOKENS)
    blocks = rows.selectors.part(slot, 1).get(1, stream)[0][:, begin:end].view(np.uint8)
    grid = load_grid(SELECTORS[shape.selector].grid)
    turn = rotation(shape.head_dim).astype(np.float32)
    skip = first - begin * BLOCK_TOKENS
    n = (end - begin) * BLOCK_TOKENS
    found = [
        estimate_ref(shape.selector, np.ascontiguousarray(own), n, shape.head_dim, grid, None) @ turn
        for own in blocks
    ]
    estimates: np.ndarray = np.stack(found)[:, skip : skip + last - first]
    return estimates


def of_slot(
    memory: DeviceArray | PinnedMemory, shape: tuple[int, ...], slot: int, stream: Stream
) -> np.ndarray:
    """A slot's part of a pool of uint32, on the device or the host."""
    if isinstance(memory, DeviceArray):
        own: np.ndarray = memory.part(slot, 1).get(1, stream)[0]
        return own
    stream.synchronise()
    held: np.ndarray = memory.array.view(np.uint32).reshape(shape)[slot]
    return held
