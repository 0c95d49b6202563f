"""HIGGS: rows rotated, divided by their root mean square, and replaced by the nearest points of a grid.

Source: arXiv 2411.17525. Scale rules: "norm" keeps the root mean square; "unbiased" makes the decoded row's
dot product with the row itself exact (for scoring); "least_squares" makes it closest to the row.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .higgs_layout import LARGEST_SCALE, TILE_TOKENS, GridTables
from .rotate import make_rotate, rotation

SCALE_RULES = ("norm", "unbiased", "least_squares")


def nearest_ref(y: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The index of the grid point nearest to every sub-vector, the lowest of equally near ones.

    Shapes: y [..., d], grid [n, d] -> int64 [...].
    """
    flat, wide = y.reshape(-1, grid.shape[1]).astype(np.float64), grid.astype(np.float64)
    half = 0.5 * (wide**2).sum(axis=1)
    codes = np.empty(len(flat), np.int64)
    for start in range(0, len(flat), 65536):
        codes[start : start + 65536] = (flat[start : start + 65536] @ wide.T - half).argmax(axis=1)
    return codes.reshape(y.shape[:-1])


def encode_ref(
    rows: np.ndarray,
    grid: np.ndarray,
    mean: np.ndarray | None = None,
    scale_rule: str = "norm",
    signs: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of rows.

    Shapes: rows [..., D], mean [D] -> codes uint8 [..., D / d], scales float16 [...].
    """
    centred = rows.astype(np.float64) - (0 if mean is None else mean)
    return encode_rotated_ref(
        centred @ rotation(rows.shape[-1], signs).T.astype(np.float64), grid, scale_rule
    )


def encode_rotated_ref(
    rotated: np.ndarray, grid: np.ndarray, scale_rule: str = "norm"
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of rows that are rotated already; see encode_ref."""
    head_dim = rotated.shape[-1]
    scale = np.sqrt((rotated**2).mean(axis=-1))
    y = rotated / np.where(scale > 0, scale, 1)[..., None]
    codes = nearest_ref(y.reshape(*y.shape[:-1], head_dim // grid.shape[1], grid.shape[1]), grid)
    c = grid.astype(np.float64)[codes].reshape(y.shape)
    along = (y * c).sum(axis=-1)
    if scale_rule == "unbiased":
        scale = scale * np.where(along > 0, head_dim / np.where(along > 0, along, 1), 1)
    elif scale_rule == "least_squares":
        scale = scale * np.where(along > 0, along / (c**2).sum(axis=-1), 1)
    return codes.astype(np.uint8), np.minimum(scale, LARGEST_SCALE).astype(np.float16)


def decode_ref(
    codes: np.ndarray, scales: np.ndarray, grid: np.ndarray, *, rotated: bool = False, signs: bool = False
) -> np.ndarray:
    """The rows that codes stand for, float64; with `rotated` R u instead of u. The mean is not added.

    Shapes: codes [..., D / d], scales [...] -> [..., D].
    """
    y = grid.astype(np.float64)[codes]
    y = y.reshape(*codes.shape[:-1], codes.shape[-1] * grid.shape[1]) * scales.astype(np.float64)[..., None]
    return y if rotated else y @ rotation(y.shape[-1], signs).astype(np.float64)


def encode_scratch_bytes(head_dim: int) -> int:
    """Scratch of one thread: see EncodeScratch."""
    return EncodeScratch(head_dim).n_bytes


class EncodeScratch:
    """Offsets in the scratch of an encoder: 16 rotated rows, their codes, scores, scales and a spare row."""

    __slots__ = ("codes", "n_bytes", "scales", "scores", "spare")

    def __init__(self, head_dim: int) -> None:
        self.codes = TILE_TOKENS * head_dim * 4
        self.scores = self.codes + TILE_TOKENS * head_dim
        self.scales = self.scores + TILE_TOKENS * head_dim * 2
        self.spare = self.scales + 128
        self.n_bytes = self.spare + 8 * head_dim


def make_rotate_rows(head_dim: int, signs: bool) -> Any:
    """An inline rotate_rows(rows, row_stride, mean, n_tokens, scratch): up to 16 centred, rotated rows.

    mean 0: none.
    """
    from ..cpu import vector_ops as v

    rotate = make_rotate(head_dim, False, signs)

    @v.inline
    def rotate_rows(rows: int, row_stride: int, mean: int, n_tokens: int, scratch: int) -> None:
        for token in range(n_tokens):
            target, source = scratch + token * head_dim * 4, rows + token * row_stride
            if mean:
                for i in range(0, head_dim * 4, 64):
                    v.store_f32(target + i, v.sub(v.load_f32(source + i), v.load_f32(mean + i)))
                source = target
            rotate(target, source)

    return rotate_rows


def make_normalise(head_dim: int) -> Any:
    """An inline normalise(n_tokens, y, scales): divides rows by their root mean squares, which it keeps."""
    import math

    from ..cpu import vector_ops as v

    @v.inline
    def normalise(n_tokens: int, y: int, scales: int) -> None:
        for token in range(n_tokens):
            row = y + token * head_dim * 4
            squares = v.zero()
            for i in range(0, head_dim * 4, 64):
                piece = v.load_f32(row + i)
                squares = v.fma(piece, piece, squares)
            scale = np.float32(math.sqrt(v.hsum(squares) * np.float32(1 / head_dim)))
            inverse = v.splat(np.float32(1) / scale if scale > np.float32(0) else np.float32(0))
            for i in range(0, head_dim * 4, 64):
                v.store_f32(row + i, v.mul(v.load_f32(row + i), inverse))
            v.put_f32(scales + token * 4, scale)

    return normalise


@cache
def make_find_codes(head_dim: int, dim: int, n_points: int, scale_rule: str) -> Any:
    """An inline find_codes(n_tokens, tables, y, codes, scores, scales): codes of up to 16 normalised rows.

    Codes of one row follow those of the one before; `scales` are corrected in place by the scale rule.
    """
    from ..cpu import vector_ops as v
    from ..cpu.codeword_search import make_search, search_vectors

    n_vectors = search_vectors(dim)
    search = make_search(dim, n_points, n_vectors)
    tables_of = GridTables(dim, n_points)
    half, point_bytes, half_square = n_points // 2, 4 * (dim + 1), 4 * dim
    per_row = head_dim // dim
    together = 16 * n_vectors
    unbiased, corrected = scale_rule == "unbiased", scale_rule != "norm"
    if scale_rule not in SCALE_RULES or tables_of.n_points > 256:
        raise ValueError(f"no scale rule {scale_rule!r}: choose one of {', '.join(SCALE_RULES)}")

    @v.inline
    def find_codes(n_tokens: int, tables: int, y: int, codes: int, scores: int, scales: int) -> None:
        for first in range(0, n_tokens * per_row, together):
            search(y + first * dim * 4, tables, codes + first, scores + first * 4)
        if corrected:
            for token in range(n_tokens):
                total, half_squares = np.float32(0), np.float32(0)
                for i in range(token * per_row, (token + 1) * per_row):
                    total += v.get_f32(scores + i * 4)
                    point = v.get_u8(codes + i) % half
                    half_squares += v.get_f32(tables + point * point_bytes + half_square)
                along = total + half_squares
                if along > np.float32(0):
                    factor = np.float32(head_dim) / along
                    if not unbiased:
                        factor = along / (np.float32(2) * half_squares)
                    v.put_f32(scales + token * 4, v.get_f32(scales + token * 4) * factor)

    return find_codes


def make_put_scale() -> Any:
    """An inline put_scale(address, scale): float16, at most the largest."""
    from ..cpu import vector_ops as v

    put = v.PUT["f16"]

    @v.inline
    def put_scale(address: int, scale: float) -> None:
        put(address, min(scale, np.float32(LARGEST_SCALE)))

    return put_scale
