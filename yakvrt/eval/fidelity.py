"""How far next-token distributions on a given continuation are from full attention's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def logit_scores(
    found: Iterable[np.ndarray], full: Sequence[np.ndarray], targets: Sequence[int]
) -> dict[str, float]:
    """KL divergence from full attention (mean, 99th percentile) and NLL of the targets, in nats a token, and
    how often the best token is the same.

    Shapes: found and full log-probabilities [V] of each target, at least one.
    """
    kl, nll, same = [], [], []
    for of_method, of_full, target in zip(found, full, targets, strict=True):
        divergence = (np.exp(of_full, dtype=np.float64) * (of_full - of_method)).sum()
        kl.append(max(0.0, divergence))  # rounding leaves a little less than nothing
        nll.append(-of_method[target])
        same.append(of_method.argmax() == of_full.argmax())
    return {
        "kl_mean": float(np.mean(kl)),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "same_top1": float(np.mean(same)),
        "nll": float(np.mean(nll)),
    }
