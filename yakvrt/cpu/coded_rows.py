"""Rows of one slot as HIGGS codes."""

from __future__ import annotations

import numpy as np

from ..kernels.chosen_rows import BLOCK_PRODUCTS
from ..kernels.higgs_code import HiggsCode
from .memory import reserved


class CodedRows:
    """Rows of one slot as codes, all layers: of each head, or with one head the tokens' rows of all heads.

    Memory is taken page by page as rows are written. Bytes: n_codes + 2 per row.
    """

    def __init__(self, code: HiggsCode, n_layers: int, n_heads: int, n_places: int) -> None:
        self._code = code
        self._codes = reserved((n_layers, n_heads, n_places, code.n_codes))
        self._scales = reserved((n_layers, n_heads, n_places * 2)).view(np.float16)

    def write(self, layer: int, first: int, rows: np.ndarray) -> None:
        """Encodes rows at places first, first + 1, ... Shapes: rows [H, n, width]."""
        places = slice(first, first + rows.shape[1])
        for head, of_head in enumerate(rows):
            self._codes[layer, head, places], self._scales[layer, head, places] = self._code.encode(of_head)

    def take(self, layer: int, head: int, places: np.ndarray, columns: slice) -> np.ndarray:
        """Some columns of decoded rows. Shapes: places [n] -> float32 [n, columns]."""
        return self._code.decode(self._codes[layer, head, places], self._scales[layer, head, places], columns)

    def state(self, name: str, first: int, last: int) -> dict[str, np.ndarray]:
        """Codes and scales at places first to last - 1 of all layers, as they rest: views."""
        return {
            f"{name}_codes": self._codes[:, :, first:last],
            f"{name}_scales": self._scales[:, :, first:last],
        }

    def dots(self, layer: int, q: np.ndarray, first: int, last: int) -> np.ndarray:
        """Dot products of queries with the rows at places first to last - 1, in the rotated domain.

        Shapes: q [H, G, width] -> float32 [H, G, last - first].
        """
        turned = q @ self._code.turn.T
        out = np.empty((*q.shape[:2], last - first), np.float32)
        block = max(64, BLOCK_PRODUCTS // (turned.shape[2] * q.shape[1]))
        for head, queries in enumerate(turned):
            for at in range(first, last, block):
                places = slice(at, min(at + block, last))
                points = self._code.points(self._codes[layer, head, places])
                np.matmul(queries, points.T, out=out[head, :, at - first : places.stop - first])
        out *= self._scales[layer, :, None, first:last].astype(np.float32)
        return out
