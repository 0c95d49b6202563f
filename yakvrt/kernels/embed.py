"""out[b] = row tokens[b] of the embedding table, read from the tiles the output projection may share."""

from __future__ import annotations

from typing import Any

import numpy as np

from .tile_layout import LAYOUTS


def embed_ref(table: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Shapes: table [V, E], tokens [B] -> [B, E]."""
    return table[tokens]


def embed_cpu(format_name: str) -> Any:
    """Args: out, out_stride, table, n_cols, tokens (int64), n_rows*. Threads share the blocks of all rows."""
    from ..cpu import vector_ops as v
    from ..cpu.tile_row import make_read_row

    layout = LAYOUTS[format_name]
    read_row = make_read_row(format_name)
    unit_cols = 16 if layout.is_float else layout.column_multiple
    unit_bytes = layout.tile_bytes(unit_cols)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, out_stride, table = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        n_cols, tokens, n_rows = v.get_i64(args + 24), v.get_i64(args + 32), v.get_i64(v.get_i64(args + 40))
        n_units = n_cols // unit_cols
        for unit in range(
            n_rows * n_units * thread // n_threads, n_rows * n_units * (thread + 1) // n_threads
        ):
            row, piece = unit // n_units, unit % n_units
            token = v.get_i64(tokens + row * 8)
            tile = table + token // 16 * n_units * unit_bytes
            target = out + row * out_stride + piece * unit_cols * 4
            read_row(tile + piece * unit_bytes, token % 16, target)

    return kernel
