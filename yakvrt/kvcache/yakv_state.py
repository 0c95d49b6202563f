"""Which of YAKV's pools are divided among tokens."""

from __future__ import annotations

from collections.abc import Mapping

from ..backend import SlotValues
from ..kernels.higgs_layout import BLOCK_TOKENS
from ..kernels.yakv_layout import YakvShape, indexed_end
from .contract import StateArray, TokenRows

BY_BLOCK = ("selectors", "values", "rows", "scales")  # or such a name, a dot and the layer


def yakv_state(
    pools: Mapping[str, SlotValues], shape: YakvShape, n_held: int, block_axis: int
) -> dict[str, StateArray]:
    """Codes by blocks, which are there when a window lies behind them; ring, mean key and tail parts are of
    all tokens.
    """
    n_blocks = (indexed_end(n_held, shape.n_sinks, shape.window) - shape.n_sinks) // BLOCK_TOKENS

    def blocks(values: SlotValues) -> TokenRows:
        size = values.shape[block_axis] // max(1, n_blocks)
        return TokenRows(block_axis, BLOCK_TOKENS, shape.n_sinks, shape.window, size)

    return {
        name: StateArray(values, rows=blocks(values) if name.partition(".")[0] in BY_BLOCK else None)
        for name, values in pools.items()
    }
