"""Cases of every CUDA kernel, a file for each family: small ones for the emulator, real ones for a GPU."""

from __future__ import annotations

from . import matmul
from .case import Sized

FAMILIES = (matmul,)


def all_cases(real: bool) -> list[Sized]:
    """Of sizes that models have, or of a few rows for the emulator."""
    return [case for family in FAMILIES for case in family.cases(real)]
