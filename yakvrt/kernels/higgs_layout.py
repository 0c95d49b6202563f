"""How keys and values rest as HIGGS codes: selector blocks, host rows, and the tables that kernels read.

A row u (one token, one KV head, D numbers, the mean already subtracted) is stored as codes c and a float16
scale s: R u ~ s * concat(grid[c]), R being the rotation of kernels/rotate.py. A zero row has scale 0.

Selector block: 64 tokens of one KV head, whose keys are scored straight from the codes.

    [4 tiles of codes][64 float16 scales]

A tile serves 16 tokens, so that one 32-bit lane of a vector serves one token: byte 4*t + j of vector i (64
bytes) is the code of token t's sub-vector 4*i + j. Missing sub-vectors of the last vector have code 0.
The selector "1.5bit" stores the difference to a mean row per 8 tokens, which follows the block:

    [mean codes][8 float16 scales][48 bytes unused]

Byte 8*r + j of vector i of the mean codes is the code of mean row r's sub-vector 8*i + j.

Host row: codes of K, then of V, in formats that may differ. Scales rest apart.
    q4    one byte per sub-vector of 2
    q3    6 bits per sub-vector of 2, 4 codes in 3 bytes, the first in the lowest bits
    q8    int8 per rotated coordinate, scale = largest / 127
    bf16  the exact row, neither rotated nor centred; scale 1
    r3    of K only: q3 of R k less what the key's selector code makes of it (see higgs_residual.py)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK_TOKENS = 64
TILE_TOKENS = 16
META_TOKENS = 8  # tokens that share a mean row
LARGEST_SCALE = 65504.0  # of float16


def _padded(n: int) -> int:
    return -(-n // 64) * 64


@dataclass(frozen=True, slots=True)
class GridTables:
    """Where the tables of a grid of up to 256 points lie in one block of memory; offsets in bytes.

    Grids are symmetric: point n / 2 + i is the mirror image of point i, -1 times it.
    search  float32 [n / 2][d + 1]: a point of the first half, then |point|^2 / 2
    halves  float16 [n][d]
    planes  float16 [d][n]
    step    float32: step of the byte forms, a byte b standing for step * (b - 127.5)
    bytes8  uint8 [d][128]: the first half of the points; 255 - b mirrors a byte b
    words8  uint8 [256][max(d, 4)]: all points
    """

    dim: int
    n_points: int

    @property
    def halves(self) -> int:
        return _padded(self.n_points // 2 * (self.dim + 1) * 4)

    @property
    def planes(self) -> int:
        return self.halves + _padded(self.n_points * self.dim * 2)

    @property
    def step(self) -> int:
        return self.planes + _padded(self.n_points * self.dim * 2)

    @property
    def bytes8(self) -> int:
        return self.step + 64

    @property
    def words8(self) -> int:
        return self.bytes8 + self.dim * 128

    @property
    def n_bytes(self) -> int:
        return self.words8 + 256 * max(self.dim, 4)


def byte_grid(grid: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """A symmetric grid rounded to bytes b and a step: a coordinate is about step * (b - 127.5)."""
    step = np.float32(np.abs(grid).max() / 127.5)
    codes = np.clip(np.floor(grid / step) + 128, 0, 255).astype(np.uint8)
    half = len(grid) // 2
    codes[half:] = 255 - codes[:half]
    return codes, step


def rounded_grid(grid: np.ndarray) -> np.ndarray:
    """The points that the byte form of a grid stands for: what scoring reads. float64."""
    codes, step = byte_grid(grid)
    return (codes - 127.5) * step.astype(np.float64)


def pack_tables(grid: np.ndarray) -> np.ndarray:
    """The tables of a grid as kernels read them, uint8 on a cache line.

    Raises: ValueError for a grid of more than 256 points, of values beyond float16, or without symmetry.
    """
    n_points, dim = grid.shape
    if n_points > 256:
        raise ValueError(f"a grid of {n_points} points has no byte codes: use one of at most 256")
    halves = grid.astype(np.float16)
    if not np.array_equal(halves, grid):
        raise ValueError("a grid's values must be exact in float16: round them before")
    half = n_points // 2
    if not np.array_equal(grid[half:], -grid[:half]):
        raise ValueError("a grid must hold the mirror images of its first half in its second: make it so")
    tables = GridTables(dim, n_points)
    codes = np.zeros((256, max(dim, 4)), np.uint8)
    codes[:n_points, :dim], step = byte_grid(grid)
    raw = np.zeros(tables.n_bytes + 64, np.uint8)
    memory = raw[-raw.ctypes.data % 64 :][: tables.n_bytes]
    squares = 0.5 * (grid[:half].astype(np.float64) ** 2).sum(axis=1, keepdims=True)
    parts = {
        0: np.hstack([grid[:half], squares]).astype(np.float32),
        tables.halves: halves,
        tables.planes: halves.T,
        tables.step: np.array([step], np.float32),
        tables.bytes8: np.where(np.arange(128)[:, None] < half, codes[:128, :dim], 0).T,
        tables.words8: codes,
    }
    for offset, part in parts.items():
        flat = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        memory[offset : offset + len(flat)] = flat
    return memory


@dataclass(frozen=True, slots=True)
class RowFormat:
    """One form of a K or V row in host memory."""

    name: str
    bits: int  # per coordinate
    grid: str | None = None
    residual: bool = False  # of what the selector's code leaves of the key

    @property
    def rotated(self) -> bool:
        """Whether the decoded row is R u; otherwise it is the original row."""
        return self.name != "bf16"

    @property
    def sixes(self) -> bool:
        """Whether codes are packed, 4 in 3 bytes."""
        return self.bits == 3

    def n_bytes(self, head_dim: int) -> int:
        return head_dim * self.bits // 8


ROW_FORMATS = {
    row_format.name: row_format
    for row_format in (
        RowFormat("q4", 4, "d2n256"),
        RowFormat("q3", 3, "d2n64"),
        RowFormat("q8", 8),
        RowFormat("bf16", 16),
        RowFormat("r3", 3, "d2n64", residual=True),
    )
}


def row_bytes(head_dim: int, k_format: str, v_format: str) -> int:
    """Bytes between host rows: K, V, and padding to 16."""
    return -(-sum(ROW_FORMATS[name].n_bytes(head_dim) for name in (k_format, v_format)) // 16) * 16


@dataclass(frozen=True, slots=True)
class Selector:
    """One kind of selector block: the grid of its codes, and that of its mean rows."""

    name: str
    grid: str
    dim: int  # of a sub-vector
    mean_grid: str | None = None

    def tile_vectors(self, head_dim: int) -> int:
        """Vectors of 64 codes in a tile."""
        return -(-head_dim // self.dim // 4)

    def tile_bytes(self, head_dim: int) -> int:
        return 64 * self.tile_vectors(head_dim)

    def scales(self, head_dim: int) -> int:
        """Offset of the 64 scales of a block."""
        return 4 * self.tile_bytes(head_dim)

    def mean_codes(self, head_dim: int) -> int:
        """Offset of the codes of the mean rows."""
        return self.scales(head_dim) + 2 * BLOCK_TOKENS

    def mean_scales(self, head_dim: int) -> int:
        return self.mean_codes(head_dim) + 4 * head_dim

    def block_bytes(self, head_dim: int) -> int:
        return self.mean_scales(head_dim) + 64 if self.mean_grid else self.mean_codes(head_dim)


SELECTORS = {
    selector.name: selector
    for selector in (
        Selector("2bit", "d4n256", 4),
        Selector("1bit", "d8n256", 8),
        Selector("1.5bit", "d8n256", 8, "d2n256"),
    )
}
