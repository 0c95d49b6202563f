"""The rotary frequencies under every scaling rule."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from yakvrt.config import ConfigError, ModelConfig, RopeScaling, rope_frequencies

DENSE = ModelConfig(
    family="llama",
    n_layers=4,
    n_heads=8,
    n_kv_heads=2,
    head_dim=16,
    hidden_dim=128,
    ffn_dim=256,
    vocab_size=512,
    context_len=4096,
    norm_eps=1e-5,
    rope_theta=500000.0,
)
LLAMA3 = RopeScaling("llama3", 8.0, 256, low_freq_factor=1.0, high_freq_factor=4.0)


def test_plain_and_linear_frequencies() -> None:
    expected = [500000.0 ** (-2 * i / 16) for i in range(8)]
    inv_freq, scale = rope_frequencies(DENSE)
    assert inv_freq.dtype == np.float64
    assert scale == 1.0
    np.testing.assert_allclose(inv_freq, expected, rtol=1e-14)
    inv_freq, scale = rope_frequencies(replace(DENSE, rope_scaling=RopeScaling("linear", 4.0)))
    np.testing.assert_allclose(inv_freq, np.array(expected) / 4, rtol=1e-14)
    assert scale == 1.0


# Divisors of the frequencies that llama.cpp's converter writes for the two llama3 fixtures.
LLAMA3_FACTORS = {
    8.0: [1.0, 1.0, 3.568532943725586, *[8.0] * 5],
    32.0: [1.0, 1.0, 4.9234724044799805, *[32.0] * 5],
}


@pytest.mark.parametrize("factor", LLAMA3_FACTORS)
def test_llama3_frequencies_as_rule_and_as_tensor(factor: float) -> None:
    plain = rope_frequencies(DENSE)[0]
    by_rule = rope_frequencies(replace(DENSE, rope_scaling=replace(LLAMA3, factor=factor)))
    np.testing.assert_allclose(plain / by_rule[0], LLAMA3_FACTORS[factor], rtol=1e-6)
    tensor = np.array(LLAMA3_FACTORS[factor], np.float32)
    by_tensor = rope_frequencies(replace(DENSE, rope_factors_tensor=True), tensor)
    np.testing.assert_allclose(by_tensor[0], by_rule[0], rtol=1e-6)
    assert by_rule[1] == by_tensor[1] == 1.0


@pytest.mark.parametrize(
    "factors", [None, np.ones(7), np.ones((8, 1)), np.zeros(8), -np.ones(8), np.full(8, np.nan)]
)
def test_bad_factor_tensors(factors: np.ndarray | None) -> None:
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight"):
        rope_frequencies(replace(DENSE, rope_factors_tensor=True), factors)


def yarn_by_hand(theta: float, dim: int, s: RopeScaling) -> list[float]:
    """One pair at a time, from the definition: how often does the pair turn over the trained context?"""

    def pair_at(turns: float) -> float:
        return dim * math.log(s.original_context_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair_at(s.beta_fast)), 0), min(math.ceil(pair_at(s.beta_slow)), dim - 1)
    frequencies = []
    for i in range(dim // 2):
        ramp = min(max((i - low) / ((high - low) or 0.001), 0.0), 1.0)
        frequency = theta ** (-2 * i / dim)
        frequencies.append(frequency / s.factor * ramp + frequency * (1 - ramp))
    return frequencies


@pytest.mark.parametrize(
    ("head_dim", "theta", "scaling"),
    [
        (128, 1e6, RopeScaling("yarn", 4.0, 32768)),
        (16, 5e5, RopeScaling("yarn", 8.0, 256, beta_fast=8.0, beta_slow=2.0)),
        (64, 1e4, RopeScaling("yarn", 2.0, 2048, attn_factor=0.7)),
        (16, 1e6, RopeScaling("yarn", 4.0, 64, beta_fast=40.0, beta_slow=39.0)),
    ],
)
def test_yarn_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> None:
    config = replace(DENSE, head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    inv_freq, attention = rope_frequencies(config)
    np.testing.assert_allclose(inv_freq, yarn_by_hand(theta, head_dim, scaling), rtol=1e-12)
    assert attention == (scaling.attn_factor or 0.1 * math.log(scaling.factor) + 1)


def test_yarn_known_values() -> None:
    """Qwen2.5's published setting: pairs up to 23 keep their speed, from 40 on they take a quarter."""
    config = replace(DENSE, head_dim=128, rope_theta=1e6, rope_scaling=RopeScaling("yarn", 4.0, 32768))
    inv_freq, attention = rope_frequencies(config)
    ratio = inv_freq / rope_frequencies(replace(config, rope_scaling=None))[0]
    np.testing.assert_allclose(ratio[:24], 1.0)
    np.testing.assert_allclose(ratio[40:], 0.25)
    np.testing.assert_allclose(ratio[24:40], 1 - 0.75 * np.arange(1, 17) / 17)
    assert attention == pytest.approx(1.1386294361119891)
