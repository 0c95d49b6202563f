"""The block layouts of every ggml tensor type; all sizes follow from the field widths.

A tensor's row is a run of blocks; a block holds `block_len` values in a packed record of fields.
Source: ggml's ggml-common.h (the block_* structures) and ggml.h (the numeric ids).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

Fields = tuple[tuple[str, str, int], ...]

# name: (ggml id, values per block, fields in file order as (name, little-endian numpy type, count)).
# Gaps in the ids are types that ggml withdrew: files with them can no longer be read by anyone.
_LAYOUTS: Mapping[str, tuple[int, int, Fields]] = MappingProxyType(
    {
        "F32": (0, 1, (("x", "<f4", 1),)),
        "F16": (1, 1, (("x", "<f2", 1),)),
        "Q4_0": (2, 32, (("d", "<f2", 1), ("qs", "u1", 16))),
        "Q4_1": (3, 32, (("d", "<f2", 1), ("m", "<f2", 1), ("qs", "u1", 16))),
        "Q5_0": (6, 32, (("d", "<f2", 1), ("qh", "<u4", 1), ("qs", "u1", 16))),
        "Q5_1": (7, 32, (("d", "<f2", 1), ("m", "<f2", 1), ("qh", "<u4", 1), ("qs", "u1", 16))),
        "Q8_0": (8, 32, (("d", "<f2", 1), ("qs", "i1", 32))),
        "Q8_1": (9, 32, (("d", "<f2", 1), ("s", "<f2", 1), ("qs", "i1", 32))),
        "Q2_K": (10, 256, (("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2", 1), ("dmin", "<f2", 1))),
        "Q3_K": (11, 256, (("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2", 1))),
        "Q4_K": (12, 256, (("d", "<f2", 1), ("dmin", "<f2", 1), ("scales", "u1", 12), ("qs", "u1", 128))),
        "Q5_K": (
            13,
            256,
            (("d", "<f2", 1), ("dmin", "<f2", 1), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)),
        ),
        "Q6_K": (14, 256, (("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2", 1))),
        "Q8_K": (15, 256, (("d", "<f4", 1), ("qs", "i1", 256), ("bsums", "<i2", 16))),
        "IQ2_XXS": (16, 256, (("d", "<f2", 1), ("qs", "<u2", 32))),
        "IQ2_XS": (17, 256, (("d", "<f2", 1), ("qs", "<u2", 32), ("scales", "u1", 8))),
        "IQ3_XXS": (18, 256, (("d", "<f2", 1), ("qs", "u1", 96))),
        "IQ1_S": (19, 256, (("d", "<f2", 1), ("qs", "u1", 32), ("qh", "<u2", 8))),
        "IQ4_NL": (20, 32, (("d", "<f2", 1), ("qs", "u1", 16))),
        "IQ3_S": (
            21,
            256,
            (("d", "<f2", 1), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)),
        ),
        "IQ2_S": (22, 256, (("d", "<f2", 1), ("qs", "u1", 64), ("qh", "u1", 8), ("scales", "u1", 8))),
        "IQ4_XS": (
            23,
            256,
            (("d", "<f2", 1), ("scales_h", "<u2", 1), ("scales_l", "u1", 4), ("qs", "u1", 128)),
        ),
        "I8": (24, 1, (("x", "i1", 1),)),
        "I16": (25, 1, (("x", "<i2", 1),)),
        "I32": (26, 1, (("x", "<i4", 1),)),
        "I64": (27, 1, (("x", "<i8", 1),)),
        "F64": (28, 1, (("x", "<f8", 1),)),
        "IQ1_M": (29, 256, (("qs", "u1", 32), ("qh", "u1", 16), ("scales", "u1", 8))),
        "BF16": (30, 1, (("x", "<u2", 1),)),
        "TQ1_0": (34, 256, (("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2", 1))),
        "TQ2_0": (35, 256, (("qs", "u1", 64), ("d", "<f2", 1))),
        "MXFP4": (39, 32, (("e", "u1", 1), ("qs", "u1", 16))),
        "NVFP4": (40, 64, (("d", "u1", 4), ("qs", "u1", 32))),
        "Q1_0": (41, 128, (("d", "<f2", 1), ("qs", "u1", 16))),
    }
)


@dataclass(frozen=True, slots=True)
class Format:
    """One ggml tensor type: `block_len` values stored in `block_bytes` bytes."""

    name: str
    ggml_id: int
    block_len: int
    block_bytes: int
    block: np.dtype[np.void]

    def row_bytes(self, n_values: int) -> int:
        """Bytes of a row of n_values values.

        Raises: ValueError when the row is not a whole number of blocks.
        """
        if n_values < 0 or n_values % self.block_len:
            raise ValueError(
                f"a row of {n_values} values is not a whole number of {self.name} blocks of {self.block_len}"
            )
        return n_values // self.block_len * self.block_bytes


def _format(name: str, ggml_id: int, block_len: int, fields: Fields) -> Format:
    block = np.dtype([(field, dtype, (count,)) for field, dtype, count in fields])
    return Format(name, ggml_id, block_len, block.itemsize, block)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {name: _format(name, *layout) for name, layout in _LAYOUTS.items()}
)
_BY_ID: Mapping[int, Format] = MappingProxyType({f.ggml_id: f for f in FORMATS.values()})


def by_id(ggml_id: int) -> Format:
    """The format with this numeric id.

    Raises: ValueError for an id that ggml does not use (or no longer uses).
    """
    try:
        return _BY_ID[ggml_id]
    except KeyError:
        raise ValueError(
            f"tensor type id {ggml_id} is not known; ids up to {max(_BY_ID)} are read, "
            "withdrawn ones excepted; convert the file anew"
        ) from None
