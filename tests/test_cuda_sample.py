"""Drawing tokens on a GPU, emulated, against numpy and the sampler of the CPU."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from cuda_cases.elementwise import sample
from cuda_kernel import emulated_kernel, solve

from yakvrt.kernels.sample_cuda import sample_ref
from yakvrt.kernels.select_topk import select_topk_ref
from yakvrt.sampler import Sampler, SamplingParams

RNG = np.random.default_rng(71)
# top_k, temperature, top_p, min_p
PARAMS = [
    (40, 0.8, 0.95, 0.05),
    (60, 1.5, 1, 0),
    (7, 0.3, 0.5, 0),
    (64, 1, 1, 0.2),
    (1, 1, 1, 0),
    (9, 0, 1, 0),
]


def cases() -> list[tuple[np.ndarray, tuple[int, float, float, float], float]]:
    """Logits with equal ones, parameters, and a uniform number well inside the share of a token."""
    made = []
    for params in PARAMS:
        top_k, temperature, top_p, min_p = params
        for _ in range(3):
            logits = (RNG.standard_normal(300) * 3).round(2).astype(np.float32)
            sampler = Sampler(SamplingParams(temperature, top_k, top_p, min_p))
            cumulative = np.concatenate([[0.0], np.cumsum(sampler.distribution(logits, [])[1])])
            shares = [pair for pair in pairwise(cumulative) if pair[1] - pair[0] > 1e-3]
            low, high = shares[RNG.integers(len(shares))]
            made.append((logits, params, low + (high - low) * (0.1 + 0.8 * RNG.random())))
    return made


def test_the_truth_is_the_sampler_of_the_cpu() -> None:
    for logits, (top_k, temperature, top_p, min_p), uniform in cases():
        ids, shares = Sampler(SamplingParams(temperature, top_k, top_p, min_p)).distribution(logits, [])
        expected = ids[np.searchsorted(np.cumsum(shares), uniform, side="right")]
        chosen = select_topk_ref(logits, top_k)
        assert sample_ref(logits, chosen, temperature, top_p, min_p, uniform) == expected


@pytest.mark.parametrize("most", [64, 256])
def test_sample(most: int) -> None:
    solve(sample(most, 17, 300))


def test_other_numbers_of_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="100 candidates have no CUDA kernel: use 64, 256, 1024"):
        emulated_kernel("sample_cuda", "sample_cuda", 100)
