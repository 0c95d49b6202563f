"""The emulated vocabulary for whole models: functions that kernels call answer at once, to the bit what their
loops would. The tests of kernels run the functions themselves, and one compares the two.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda_emulated_memory import Pointer
from cuda_kernel import emulated


def _search(
    half: int, dim: int, points_stride: int, n_together: int, **_: Any
) -> Callable[[Any, Pointer, Any, Any], None]:
    """higgs_encode_cuda.make_search's."""

    def search(y: Any, points: Pointer, codes: Any, scores: Any) -> None:
        first = points.place(0, half * points_stride)
        table = points.memory.array[first : first + half * points_stride].reshape(half, points_stride)
        given = np.array([y[i] for i in range(n_together * dim)], np.float32).reshape(n_together, dim, 1)
        wide, dot = given.astype(np.float64), given[:, 0] * table[:, 0]
        for j in range(1, dim):
            dot = (wide[:, j] * table[:, j] + dot).astype(np.float32)
        score = np.abs(dot) - table[:, dim]
        largest = np.nanmax(score, axis=1, initial=-np.inf)
        for v in range(n_together):
            codes[v], scores[v] = 0, largest[v]
            if largest[v] > -np.inf:
                equal = np.flatnonzero(score[v] == largest[v])
                upright = equal[dot[v, equal] >= 0]
                codes[v] = upright[0] if len(upright) else equal[0] + half

    return search


SHORTCUTS = {"make_search.<locals>.search": _search}


def _inline(function: Callable[..., Any]) -> Callable[..., Any]:
    shortcut = SHORTCUTS.get(function.__qualname__)
    return shortcut(**inspect.getclosurevars(function).nonlocals) if shortcut else function


shortened = SimpleNamespace(**{**vars(emulated), "inline": _inline})
