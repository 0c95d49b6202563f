"""Exact rows of one slot, all layers: K and V of a token and head side by side."""

from __future__ import annotations

import numpy as np

from ..ops import element_type
from .memory import reserved


class ExactRows:
    """A table of rows per layer and head; a place is a position, or whatever the owner numbers rows by.

    Memory is taken page by page as rows are written, and given back with the object.
    Shapes: k and v float32 [H, n, D]; they rest as numbers of `kind`.
    """

    def __init__(self, n_layers: int, n_heads: int, n_places: int, head_dim: int, kind: str) -> None:
        dtype = element_type(kind)
        memory = reserved((n_layers, n_heads, n_places, 2 * head_dim * dtype.itemsize))
        self._rows = memory.view(dtype)
        self._head_dim = head_dim
        self._heads = np.arange(n_heads)[:, None]

    def write(self, layer: int, first: int, k: np.ndarray, v: np.ndarray) -> None:
        """Rows at places first, first + 1, ..."""
        rows = self._rows[layer, :, first : first + k.shape[1]]
        rows[..., : self._head_dim], rows[..., self._head_dim :] = k, v

    def read(self, layer: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows at places first to last - 1."""
        return self._halves(self._rows[layer, :, first:last])

    def take(self, layer: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows at places of their own per head. Shapes: places [H, n]."""
        return self._halves(self._rows[layer, self._heads, places])

    def keys(self, layer: int, n: int) -> np.ndarray:
        """The first n keys as they rest [H, n, D]."""
        keys: np.ndarray = self._rows[layer, :, :n, : self._head_dim]
        return keys

    def first(self, n: int, first_layer: int = 0) -> np.ndarray:
        """The first n places of all layers from one on, as they rest. Shapes: [L, H, n, 2 * D], a view."""
        places: np.ndarray = self._rows[first_layer:, :, :n]
        return places

    def copy_from(
        self, layer: int, heads: np.ndarray, places: np.ndarray, source: ExactRows, source_places: np.ndarray
    ) -> None:
        """Row by row from another table whose heads are these, or fewer with a group of these each.

        Shapes: heads, places and source_places [n].
        """
        group = len(self._heads) // len(source._heads)
        self._rows[layer, heads, places] = source._rows[layer, heads // group, source_places]

    def values_from(
        self,
        layer: int,
        heads: np.ndarray,
        places: np.ndarray,
        keys: np.ndarray,
        values: ExactRows,
        at: np.ndarray,
    ) -> None:
        """Keys that were computed beside values of another table. Shapes: keys [n, D], the rest [n]."""
        half = self._head_dim
        self._rows[layer, heads, places, :half] = keys
        self._rows[layer, heads, places, half:] = values._rows[layer, heads, at, half:]

    def _halves(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wide = rows.astype(np.float32)
        return wide[..., : self._head_dim], wide[..., self._head_dim :]
