"""Means over tasks with 95 % bootstrap intervals, the same in every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
MOST_DRAWN = 1 << 22  # values at once
Strata = Mapping[str, np.ndarray]  # by task, a value for each sample


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, where 95 % of its redraws lie, and the samples behind it. Without two samples in some task the
    limits are infinite, and without any the mean is nan.
    """

    mean: float
    low: float
    high: float
    n: int

    def shown(self, digits: int = 1) -> str:
        """As 51.2 [40.1, 60.3]."""
        if not self.n:
            return "-"
        if not np.isfinite(self.low):
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def mean_of(strata: Strata) -> Interval:
    """The mean over tasks of their means; samples are drawn anew within each task."""
    held = {task: values for task, values in strata.items() if len(values)}
    n = sum(len(values) for values in held.values())
    if not n:
        return Interval(float("nan"), -np.inf, np.inf, 0)
    mean = float(np.mean([values.mean() for values in held.values()]))
    if min(len(values) for values in held.values()) < 2:
        return Interval(mean, -np.inf, np.inf, n)
    low, high = np.quantile(_redrawn(held), (0.025, 0.975))
    return Interval(mean, float(low), float(high), n)


def difference_of(first: Strata, second: Strata) -> Interval:
    """The first's mean less the second's, of samples that have nothing to do with each other."""
    a, b = mean_of(first), mean_of(second)
    if not (a.n and b.n and np.isfinite(a.low) and np.isfinite(b.low)):
        return Interval(a.mean - b.mean, -np.inf, np.inf, min(a.n, b.n) and a.n + b.n)
    low, high = np.quantile(_redrawn(first, 1) - _redrawn(second, 2), (0.025, 0.975))
    return Interval(a.mean - b.mean, float(low), float(high), a.n + b.n)


def _redrawn(strata: Strata, seed: int = 0) -> np.ndarray:
    """Means of DRAWS redraws. Shapes: [DRAWS]."""
    random = np.random.default_rng(seed)
    means = []
    for values in (values for values in strata.values() if len(values)):
        n, most = len(values), max(1, MOST_DRAWN // len(values))
        sizes = [min(most, DRAWS - first) for first in range(0, DRAWS, most)]
        means.append(
            np.concatenate([values[random.integers(n, size=(rows, n))].mean(axis=1) for rows in sizes])
        )
    result: np.ndarray = np.mean(means, axis=0)
    return result
