"""One query as the scoring kernels read it: a header, what scores codes, and its codes for mean rows.

Header: float32 factor, float32 offset, int32 -127 * sum of codes, float32 -0.5 * sum of codes, float32
-127.5 * sum of codes; float32 factor of table sums, and that in steps of weights times the grid's step; how
sums become steps (codeword_weights.py): int32 multiplier, int32 shift.

int8 codes follow the look-ups of selector codes (codeword_dots.py): with AVX-512 VBMI those of four
sub-vectors for one dimension, then for the next; elsewhere they are in their own order. Where a permutation
costs as little as a dot product there are tables instead: for every position of a code a byte for each point
of the grid's first half (codeword_tables.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .features import host_features

if TYPE_CHECKING:
    from ..kernels.higgs_layout import Selector

HEADER = 64
OFFSET, FACTOR, STEPS_FACTOR, MULTIPLIER, SHIFT = 4, 20, 24, 28, 32  # where they begin
TABLE_BYTES = 128  # of one position: 255 - b mirrors a byte b
MOST_ON_REGISTERS = 256  # dimensions: four matrix registers of queries


def padded_to_vector(n: int) -> int:
    return -(-n // 64) * 64


def scores_by_tables() -> bool:
    """Whether codes are looked up in tables of the query (codeword_tables.py)."""
    return host_features().fast_permutations


def scores_on_registers(head_dim: int, group: int) -> bool:
    """Whether matrix registers multiply (codeword_tiles.py): from five queries a head on they are faster."""
    features = host_features()
    fit = head_dim <= MOST_ON_REGISTERS and group > 4
    return fit and features.amx_int8 and features.avx512_vbmi


def query_layout(selector: Selector, head_dim: int) -> tuple[int, int, int]:
    """Offset of the codes or tables, offset of the codes for mean rows, and bytes of one query record."""
    bytes_each = TABLE_BYTES if scores_by_tables() else selector.dim
    means = HEADER + padded_to_vector(selector.tile_vectors(head_dim) * 4 * bytes_each)
    mean_bytes = head_dim * (1 if host_features().avx512_vbmi else 2) if selector.mean_grid else 0
    return HEADER, means, means + padded_to_vector(mean_bytes)
