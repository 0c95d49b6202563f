"""Next-token distributions of a decode run against full attention's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from yakvrt.runner import Runner


def decode(
    runner: Runner, slot: int, depth: int, ids: Sequence[int], progress: Callable[[float], None]
) -> np.ndarray:
    """Log-probabilities after each of the ids, the first of which lies at position depth.

    Shapes: [len(ids), V].
    """
    found = []
    for i, token in enumerate(ids):
        found.append(log_probs(runner.decode([slot], [depth + i], [token])[0]))
        progress((i + 1) / len(ids))
    return np.array(found)


def log_probs(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return result


def logit_scores(found: np.ndarray, full: np.ndarray, targets: Sequence[int]) -> dict[str, float]:
    """KL divergence from full attention in nats, how often the best token is the same, NLL of the targets.

    Shapes: log-probabilities [n, V], targets [n].
    """
    kl = (np.exp(full) * (full - found)).sum(axis=1)
    return {
        "kl_mean": float(kl.mean()),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "same_top1": float((found.argmax(axis=1) == full.argmax(axis=1)).mean()),
        "nll": float(-found[np.arange(len(targets)), list(targets)].mean()),
    }
