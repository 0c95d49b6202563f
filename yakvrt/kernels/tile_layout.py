"""How a weight matrix rests in memory for the CPU: tiles of 16 rows, so that one vector lane serves one row.

A tile stores the same values as the GGUF blocks it came from. Quantised formats reduce to one rule,
`weight = scale * code + offset` with unsigned codes, per run of 32 columns (or 16, where the format scales
those apart). A tile of R = 16 rows is a sequence of superblocks, each a header (float16 d and dmin of the 16
rows,
for formats with two levels of scales) followed by blocks of 32 columns:

    [scale terms][offset terms][low bits of the codes][high bits of the codes]

Codes come in 8 groups of 4 columns; group g of all rows is a vector of 64 bytes, byte 4*row + j for column
4*g + j:
    8 low bits  vector g holds group g
    4 low bits  vector k holds group k in the low nibbles, group 4 + k in the high nibbles
    2 bits      vector g // 4 holds group g at bit 2 * (g % 4)
    1 high bit  64 bits a group, bit 4*row + j
Float formats are plain: for every column, 16 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS = 16
BLOCK = 32  # columns per block


@dataclass(frozen=True, slots=True)
class TileLayout:
    """The tile form of one weight format.

    `zero` is the code that stands for 0 where a format has no offset term; `parts` counts the scales per
    block.
    """

    name: str
    low_bits: int
    high_bits: int = 0
    two_level: bool = False
    has_min: bool = False
    zero: int = 0
    parts: int = 1
    packed_min: bool = False  # scale and min share one byte (4 + 4 bits)
    is_float: bool = False

    @property
    def blocks(self) -> int:
        """Blocks of 32 columns per superblock."""
        return 8 if self.two_level else 1

    @property
    def header_bytes(self) -> int:
        return ROWS * 2 * (1 + self.has_min) if self.two_level else 0

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scale and offset terms at the start of a block."""
        if not self.two_level:
            return ROWS * 2 * (1 + self.has_min)
        return ROWS * self.parts * (2 if self.has_min and not self.packed_min else 1)

    @property
    def high_offset(self) -> int:
        return self.scale_bytes + 64 * self.low_bits

    @property
    def block_bytes(self) -> int:
        return self.high_offset + 64 * self.high_bits

    @property
    def superblock_bytes(self) -> int:
        return self.header_bytes + self.blocks * self.block_bytes

    @property
    def column_multiple(self) -> int:
        return 1 if self.is_float else BLOCK * self.blocks

    def tile_bytes(self, n_cols: int) -> int:
        """Bytes of one tile of 16 rows."""
        if self.is_float:
            return n_cols * ROWS * (self.low_bits // 8)
        return n_cols // self.column_multiple * self.superblock_bytes


LAYOUTS = {
    layout.name: layout
    for layout in (
        TileLayout("F32", 32, is_float=True),
        TileLayout("F16", 16, is_float=True),
        TileLayout("BF16", 16, is_float=True),
        TileLayout("Q4_0", 4, zero=8),
        TileLayout("Q4_1", 4, has_min=True),
        TileLayout("Q5_0", 4, 1, zero=16),
        TileLayout("Q5_1", 4, 1, has_min=True),
        TileLayout("Q8_0", 8, zero=128),
        TileLayout("Q2_K", 2, two_level=True, has_min=True, parts=2, packed_min=True),
        TileLayout("Q3_K", 2, 1, two_level=True, zero=4, parts=2),
        TileLayout("Q4_K", 4, two_level=True, has_min=True),
        TileLayout("Q5_K", 4, 1, two_level=True, has_min=True),
        TileLayout("Q6_K", 4, 2, two_level=True, zero=32, parts=2),
    )
}
