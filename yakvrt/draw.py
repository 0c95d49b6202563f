"""How a token is drawn where logits lie, so that they need not come to the host; and the token."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MOST_CANDIDATES = 64  # the largest top_k


class Draw(NamedTuple):
    """What the next token follows from, beside its logits (kernels/sample_cuda.py). temperature 0 takes the
    largest logit; otherwise top_k is 1 to MOST_CANDIDATES and `uniform`, in [0, 1), says which.
    """

    top_k: int
    temperature: float
    top_p: float
    min_p: float
    uniform: float


class Drawn(NamedTuple):
    """A token, and the largest of its logits: NaN if any is."""

    id: int
    peak: float


# What is known of a next token: float32 logits [V], or the token.
Next = npt.NDArray[np.float32] | Drawn
