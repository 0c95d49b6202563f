"""general.size_label: a model's number of weights as llama.cpp's converter writes it, 135M or 128x2.4B."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Protocol

_UNITS: Final = ((10**12, "T"), (10**9, "B"), (10**6, "M"))


class Shaped(Protocol):
    """A tensor's GGUF name and shape; experts are stacked along the first axis."""

    @property
    def name(self) -> str:
        """The GGUF name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, slowest-varying first."""


def size_label(tensors: Iterable[Shaped]) -> str:
    """The label of a model: with experts, their number times the weights that one of them works with."""
    n_weights = n_experts = 0
    for tensor in tensors:
        size = math.prod(tensor.shape)
        if "_exps." in tensor.name:
            n_experts = tensor.shape[0]
            size //= n_experts
        n_weights += size
    return (f"{n_experts}x" if n_experts else "") + _rounded(n_weights)


def _rounded(count: int) -> str:
    unit, letter = next((pair for pair in _UNITS if count > pair[0]), (1000, "K"))
    value = count / unit
    # Two digits at least: 1.5B, 135M.
    digits = max(0, 2 - len(str(round(value)).lstrip("0")))
    return f"{value:.{digits}f}{letter}"
