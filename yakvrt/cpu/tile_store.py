"""Where the CPU backend keeps a model's weights: matrices in tiles, in one piece of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.tile_layout import LAYOUTS
from .memory import ALIGNMENT, padded
from .tiled_matrix import TiledMatrix, tiled_bytes

if TYPE_CHECKING:
    from .backend import CpuBackend
    from .tile_memory import TileMemory


def tile_bytes(matrices: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Bytes that matrices of these formats and shapes take in a TileMemory."""
    return sum(padded(_bytes_of(kind, shape), ALIGNMENT) for kind, shape in matrices)


def _bytes_of(kind: str, shape: tuple[int, ...]) -> int:
    return tiled_bytes(kind, shape[-2], shape[-1], shape[0] if len(shape) == 3 else 1)


class TileStore:
    """weights.WeightStore over a TileMemory of tile_bytes(), which may hold the tiles already."""

    layouts = LAYOUTS

    def __init__(self, backend: CpuBackend, memory: TileMemory) -> None:
        self._backend, self._memory = backend, memory

    def prepare(self, formats: Iterable[str]) -> None:
        if not self._memory.filled:
            self._backend.prepare_formats(formats)

    def vector(self, values: np.ndarray) -> np.ndarray:
        return self._backend.vector(values)

    def matrix(
        self,
        kind: str,
        shape: tuple[int, ...],
        rows: Callable[[], np.ndarray],
        order: np.ndarray,
        bias: np.ndarray | None,
    ) -> TiledMatrix:
        n_experts = shape[0] if len(shape) == 3 else 1
        tiles = self._memory.take(_bytes_of(kind, shape))
        result = TiledMatrix(kind, shape[-2], shape[-1], n_experts, tiles, bias)
        if not self._memory.filled:
            self._backend.repack(result, rows(), order)
        return result
