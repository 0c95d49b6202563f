"""Pieces of text put between others."""

from __future__ import annotations

from collections.abc import Sequence


def interleave(pieces: Sequence[str], more: Sequence[str], places: Sequence[float]) -> list[str]:
    """The pieces with each of `more` before the piece that stands at its place, a share of all from 0 to 1.

    The places must rise.
    """
    result: list[str] = []
    start = 0
    for place, item in zip(places, more, strict=True):
        end = int(place * len(pieces))
        result += [*pieces[start:end], item]
        start = end
    return [*result, *pieces[start:]]
