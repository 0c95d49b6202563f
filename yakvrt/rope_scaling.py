"""How a model stretches its rotary positions beyond the context it was first trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from yakvrt.config_fields import ConfigError, Fields

if TYPE_CHECKING:
    from yakvrt.config import ModelConfig


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """One scaling rule; fields that the kind does not use keep their defaults.

    `attn_factor` multiplies the rotated q and k (so the logits by its square); None means the rule's own.
    Units: original_context_len tokens; beta_fast and beta_slow turns over that context.
    Source: llama3 and linear as in transformers; yarn: arXiv 2309.00071, equations 17-22.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_context_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attn_factor: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3", "yarn"):
            raise ConfigError(
                f"rope scaling {self.kind!r} is not supported; yakvrt knows linear, llama3 and yarn"
            )
        if not 1.0 <= self.factor <= 65536.0:
            raise ConfigError(f"rope scaling factor {self.factor} is out of range; 1 to 65536 are allowed")
        if self.kind != "linear" and not 1 <= self.original_context_len <= 1 << 27:
            raise ConfigError(
                f"rope scaling over an original context of {self.original_context_len} tokens "
                f"is out of range; 1 to {1 << 27} are allowed"
            )
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor <= 1e6:
            raise ConfigError(
                f"rope scaling low_freq_factor {self.low_freq_factor} must be above 0 and below "
                f"high_freq_factor {self.high_freq_factor}"
            )
        if self.kind == "yarn" and not 0 < self.beta_slow <= self.beta_fast <= 1e6:
            raise ConfigError(
                f"rope scaling beta_slow {self.beta_slow} must be above 0 and at most "
                f"beta_fast {self.beta_fast}"
            )
        if self.attn_factor is not None and not 0 < self.attn_factor <= 1e3:
            raise ConfigError(f"rope scaling attention factor {self.attn_factor} is out of range; 0 to 1000")

    def stretched(self, context_len: int) -> int:
        """The usable context: files scaled by hand for yarn keep the trained length as their context."""
        if self.kind != "yarn":
            return context_len
        return max(context_len, int(self.original_context_len * self.factor))


def scaling_from_gguf(fields: Fields) -> RopeScaling | None:
    """The scaling that GGUF keys announce (llama3 arrives as a tensor instead, see ModelConfig)."""
    factor_key = fields.first("rope.scaling.factor", "rope.scale_linear")
    factor = fields.real(factor_key, 0.0)
    kind = fields.text("rope.scaling.type", "linear" if factor else "none")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind == "linear":
        return RopeScaling("linear", factor)
    if kind != "yarn":
        raise ConfigError(f"rope scaling {kind!r} is not supported; yakvrt knows linear, llama3 and yarn")
    if fields.real("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        raise ConfigError("yarn rope scaling with an extrapolation factor other than 1 is not supported")
    # yarn_attn_factor is config.json's attention_factor, which replaces the rule's own; attn_factor
    # multiplies it.
    own = _yarn_attention(factor)
    attn_factor = fields.real("rope.scaling.yarn_attn_factor", own)
    attn_factor *= fields.real("rope.scaling.attn_factor", 1.0)
    return RopeScaling(
        "yarn",
        factor,
        fields.whole("rope.scaling.original_context_length", fields.whole("context_length")),
        beta_fast=fields.real("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.real("rope.scaling.yarn_beta_slow", 1.0),
        attn_factor=None if attn_factor == own else attn_factor,
    )


def scaling_from_json(values: Mapping[str, object], context_len: int) -> RopeScaling | None:
    """The scaling of config.json's rope_parameters (new) or rope_scaling (old).

    Units: context_len tokens, the model's max_position_embeddings.
    """
    fields = Fields(values, "config.json", "")
    kind = fields.text(fields.first("rope_type", "type"), "default")
    if kind == "default":
        return None
    original = fields.whole("original_max_position_embeddings", context_len)
    if kind == "linear":
        return RopeScaling("linear", fields.real("factor"))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            fields.real("factor"),
            fields.whole("original_max_position_embeddings"),
            low_freq_factor=fields.real("low_freq_factor"),
            high_freq_factor=fields.real("high_freq_factor"),
        )
    if kind != "yarn":
        raise ConfigError(
            f"rope scaling {kind[:80]!r} is not supported; yakvrt knows linear, llama3 and yarn"
        )
    if not fields.flag("truncate", True):
        raise ConfigError("yarn rope scaling with truncate false is not supported; yakvrt truncates")
    if fields.has("mscale") or fields.has("mscale_all_dim"):
        raise ConfigError("yarn rope scaling with mscale is not supported; set attention_factor instead")
    factor = fields.real("factor") if fields.has("factor") else context_len / max(original, 1)
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=fields.real("beta_fast", 32.0),
        beta_slow=fields.real("beta_slow", 1.0),
        attn_factor=fields.real("attention_factor") if fields.has("attention_factor") else None,
    )


def rope_frequencies(
    config: ModelConfig, factors: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.float64], float]:
    """The angle per position of each rotated pair, and the factor on the rotated q and k.

    `factors` is the file's rope_freqs.weight, which divides the frequencies.
    Shapes: factors (D / 2,); frequencies (D / 2,) in radians per token.
    Raises: ConfigError when the factors are missing, of a wrong size or not positive.
    """
    dim = config.head_dim
    inv_freq = config.rope_theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if config.rope_factors_tensor and factors is None:
        raise ConfigError("the model scales its positions with the tensor rope_freqs.weight: pass it")
    if factors is not None:
        if factors.shape != inv_freq.shape or not np.all(np.isfinite(factors) & (factors > 0)):
            raise ConfigError(
                f"rope_freqs.weight of shape {factors.shape} must hold {dim // 2} positive numbers"
            )
        inv_freq = inv_freq / factors.astype(np.float64)
    scaling = config.rope_scaling
    if scaling is None:
        return inv_freq, 1.0
    if scaling.kind == "linear":
        return inv_freq / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(inv_freq, scaling), 1.0
    attention = _yarn_attention(scaling.factor) if scaling.attn_factor is None else scaling.attn_factor
    return _yarn(inv_freq, config.rope_theta, scaling), attention


def _llama3(inv_freq: NDArray[np.float64], scaling: RopeScaling) -> NDArray[np.float64]:
    """Short waves stay, long ones slow down by the factor, those between blend."""
    waves = scaling.original_context_len * inv_freq / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((waves - low) / (high - low), 0.0, 1.0)
    return (1 - keep) * inv_freq / scaling.factor + keep * inv_freq


def _yarn(inv_freq: NDArray[np.float64], theta: float, scaling: RopeScaling) -> NDArray[np.float64]:
    """Dimensions that turn often keep their frequency, those that turn rarely are interpolated."""
    n_pairs = len(inv_freq)

    def pair_that_turns(turns: float) -> float:
        wave_len = scaling.original_context_len / (turns * 2 * math.pi)
        return n_pairs * math.log(wave_len) / math.log(theta)

    low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(scaling.beta_slow)), 2 * n_pairs - 1)
    # A ramp of no width would divide by zero; the references widen it by the same amount.
    interpolate = np.clip((np.arange(n_pairs) - low) / max(high - low, 0.001), 0.0, 1.0)
    return inv_freq / scaling.factor * interpolate + inv_freq * (1 - interpolate)


def _yarn_attention(factor: float) -> float:
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
