"""llama3 rope scaling: config.json's four numbers and GGUF's tensor rope_freqs.weight.

Source: the llama3 rule of transformers' modeling_rope_utils.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

NAME: Final = "rope_freqs.weight"
# What published models use; a file holds only the divisors that follow from them.
_LOW, _HIGH = 1.0, 4.0
_ORIGINAL_LENGTHS: Final = tuple(1 << power for power in range(7, 21))


def llama3_factors(rope: Mapping[str, Any], theta: float, head_dim: int) -> F32:
    """What each rope frequency is divided by: 1 for short waves, the factor for long ones, a blend between.

    Shapes: (head_dim / 2,).
    """
    original = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    factors = []
    for pair in range(head_dim // 2):
        wave_len = 2 * math.pi * theta ** (2 * pair / head_dim)
        if wave_len < original / high:
            factors.append(1.0)
        elif wave_len > original / low:
            factors.append(factor)
        else:
            smooth = (original / wave_len - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def llama3_rule(factors: F32, theta: float) -> dict[str, Any]:
    """The numbers that give these divisors, an empty rule where all are 1.

    Raises: ValueError when no llama3 rule in use gives them.
    """
    if not np.all(np.isfinite(factors) & (factors > 0)):
        raise ValueError(f"{NAME} holds numbers that are not above 0; get the file anew")
    if np.all(factors == 1):
        return {}
    factor = float(factors.max())
    for original in _ORIGINAL_LENGTHS:
        rule = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": _LOW,
            "high_freq_factor": _HIGH,
            "original_max_position_embeddings": original,
        }
        # Converters compute in float32 or float64: the last digits differ.
        if np.allclose(llama3_factors(rule, theta, 2 * len(factors)), factors, rtol=1e-4, atol=0):
            return rule
    raise ValueError(f"{NAME} follows no llama3 rule that config.json could state; keep the GGUF file")
