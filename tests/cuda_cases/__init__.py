"""Cases of every CUDA kernel, a file for each family: small ones for the emulator, real ones for a GPU."""

from __future__ import annotations

from . import (
    attention,
    chunks,
    elementwise,
    factors,
    higgs,
    links,
    matmul,
    moe,
    page_rows,
    pages,
    paper,
    prompt,
    recall,
    scores,
    selection,
    window,
    yakv,
)
from .case import Sized

FAMILIES = (
    matmul,
    attention,
    scores,
    selection,
    yakv,
    window,
    prompt,
    recall,
    page_rows,
    pages,
    factors,
    chunks,
    paper,
    elementwise,
    higgs,
    moe,
    links,
)


def small_cases() -> list[Sized]:
    """Of a few rows, for the emulator."""
    return [case for family in FAMILIES for case in family.small()]


def real_cases() -> list[Sized]:
    """Of sizes that models have."""
    return [case for family in FAMILIES for case in family.real()]
