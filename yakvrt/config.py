"""What kind of transformer a model is, read from GGUF keys or from config.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from yakvrt.config_fields import ConfigError, Fields
from yakvrt.rope_scaling import RopeScaling, rope_frequencies, scaling_from_gguf, scaling_from_json

if TYPE_CHECKING:
    from gguf_tools.reader import Tensor

__all__ = [
    "ConfigError",
    "ModelConfig",
    "RopeScaling",
    "config_from_gguf",
    "config_from_json",
    "rope_frequencies",
]

# Field: smallest and largest value accepted.
_LIMITS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        "n_layers": (1, 1024),
        "n_heads": (1, 1024),
        "n_kv_heads": (1, 1024),
        "head_dim": (16, 256),
        "hidden_dim": (16, 1 << 16),
        "ffn_dim": (1, 1 << 20),
        "vocab_size": (1, 1 << 22),
        "context_len": (1, 1 << 27),
        "n_experts": (0, 4096),
        "n_experts_used": (0, 4096),
        "expert_ffn_dim": (0, 1 << 20),
    }
)
# GGUF architecture or config.json model_type -> the family whose graph runs it.
_FAMILIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llama": "llama",
        "mistral": "llama",
        "qwen2": "qwen2",
        "qwen3": "qwen3",
        "qwen3moe": "qwen3moe",
        "qwen3_moe": "qwen3moe",
        "LlamaForCausalLM": "llama",
        "MistralForCausalLM": "llama",
        "Qwen2ForCausalLM": "qwen2",
        "Qwen3ForCausalLM": "qwen3",
        "Qwen3MoeForCausalLM": "qwen3moe",
    }
)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers and features that fix a model's graph.

    `tied`: the output uses token_embd. `rope_factors_tensor`: rope_freqs.weight divides the frequencies.
    n_experts == 0: dense; otherwise every layer routes to n_experts_used experts.
    Units: context_len tokens (a sliding window, where active, limits it: within the window the result is
    exact without one).
    Raises: ConfigError for numbers out of range.
    """

    family: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    ffn_dim: int
    vocab_size: int
    context_len: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    rope_factors_tensor: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    n_experts: int = 0
    n_experts_used: int = 0
    expert_ffn_dim: int = 0
    norm_topk_prob: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}; {low} to {high} are allowed")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 16:
            raise ConfigError(f"head_dim is {self.head_dim}; multiples of 16 up to 256 are allowed")
        if not 0 < self.norm_eps < 1:
            raise ConfigError(f"norm_eps is {self.norm_eps}; it must lie between 0 and 1")
        if not 1 < self.rope_theta <= 1e12:
            raise ConfigError(f"rope_theta is {self.rope_theta}; it must be above 1 and at most 1e12")
        if self.n_experts and not (1 <= self.n_experts_used <= self.n_experts and self.expert_ffn_dim):
            raise ConfigError(
                f"{self.n_experts_used} of {self.n_experts} experts of width {self.expert_ffn_dim} "
                "make no model; at least one expert of at least one row must be used"
            )

    @property
    def n_params(self) -> int:
        """Weights in the model, tied ones counted once."""
        q_rows, kv_rows = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        layer = 2 * self.hidden_dim * (q_rows + kv_rows) + 2 * self.hidden_dim
        layer += self.qkv_bias * (q_rows + 2 * kv_rows) + self.qk_norm * 2 * self.head_dim
        if self.n_experts:
            layer += self.n_experts * (self.hidden_dim + 3 * self.hidden_dim * self.expert_ffn_dim)
        else:
            layer += 3 * self.hidden_dim * self.ffn_dim
        embedding = self.vocab_size * self.hidden_dim
        return self.n_layers * layer + self.hidden_dim + embedding * (1 if self.tied else 2)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ModelConfig:
    """The model a GGUF file holds; which weights exist decides tied, qkv_bias and qk_norm.

    Raises: ConfigError for an architecture, feature or number that yakvrt does not run.
    """
    arch = Fields(metadata, "the GGUF file").text("general.architecture")
    family = _FAMILIES.get(arch) or _refuse(arch)
    f = Fields(metadata, "the GGUF file", arch + ".")
    embd = tensors.get("token_embd.weight")
    hidden_dim, n_heads = f.whole("embedding_length"), f.whole("attention.head_count")
    if embd is None or len(embd.shape) != 2 or embd.shape[1] != hidden_dim:
        held = "is missing" if embd is None else f"has shape {embd.shape}"
        raise ConfigError(f"token_embd.weight {held}; a matrix of rows of {hidden_dim} is needed")
    head_dim = f.whole("attention.key_length", hidden_dim // max(n_heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if f.whole(key, head_dim) != head_dim:
            raise ConfigError(f"{arch}.{key} is {f.whole(key)}; yakvrt needs it equal to head_dim {head_dim}")
    for name in ("attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias", "attn_sinks.weight"):
        if f"blk.0.{name}" in tensors:
            raise ConfigError(f"the model has a blk.0.{name}, which yakvrt does not run")
    if "rope_factors_long.weight" in tensors:
        raise ConfigError("rope scaling 'longrope' is not supported; yakvrt knows linear, llama3 and yarn")
    n_experts = _experts(family, f, "expert_count")
    ffn_key = f.first("feed_forward_length", "expert_feed_forward_length")
    window = f.whole("attention.sliding_window", 0)
    scaling = scaling_from_gguf(f)
    return ModelConfig(
        family=family,
        n_layers=f.whole("block_count"),
        n_heads=n_heads,
        n_kv_heads=f.whole("attention.head_count_kv", n_heads),
        head_dim=head_dim,
        hidden_dim=hidden_dim,
        ffn_dim=f.whole(ffn_key),
        vocab_size=embd.shape[0],
        context_len=_limited(f.whole("context_length"), scaling, window),
        norm_eps=f.real("attention.layer_norm_rms_epsilon"),
        rope_theta=f.real("rope.freq_base", 10000.0),
        rope_scaling=scaling,
        rope_factors_tensor="rope_freqs.weight" in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        tied="output.weight" not in tensors,
        n_experts=n_experts,
        n_experts_used=f.whole("expert_used_count") if n_experts else 0,
        expert_ffn_dim=f.whole("expert_feed_forward_length") if n_experts else 0,
        # GGUF files of this family rarely say so; its reference runtime always renormalises.
        norm_topk_prob=bool(n_experts) and f.flag("expert_weights_norm", True),
    )


def config_from_json(config: Mapping[str, Any], tensor_names: Collection[str] | None = None) -> ModelConfig:
    """The model that a config.json describes; tensor names, when given, settle tied and biases.

    Raises: ConfigError for an architecture, feature or number that yakvrt does not run.
    """
    if not isinstance(config, Mapping):
        raise ConfigError("config.json is not an object of keys and values; use a complete copy of the model")
    f = Fields(config, "config.json")
    family = _family_of_json(f)
    _check_json_features(f)
    hidden_dim, n_heads = f.whole("hidden_size"), f.whole("num_attention_heads")
    # transformers gives Qwen3 (dense) heads of 128 where the file is silent.
    head_dim = f.whole("head_dim", 128 if family == "qwen3" else hidden_dim // max(n_heads, 1))
    context_len = f.whole("max_position_embeddings")
    rope = _mapping(config, "rope_parameters") or _mapping(config, "rope_scaling")
    theta = Fields(rope, "config.json").real("rope_theta", f.real("rope_theta", 10000.0))
    scaling = scaling_from_json(rope, context_len)
    n_experts = _experts(family, f, f.first("num_experts", "num_local_experts"))
    tied = f.flag("tie_word_embeddings", False)
    if tensor_names is not None and "lm_head.weight" not in tensor_names:
        tied = True
    return ModelConfig(
        family=family,
        n_layers=f.whole("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=f.whole("num_key_value_heads", n_heads),
        head_dim=head_dim,
        hidden_dim=hidden_dim,
        ffn_dim=f.whole(f.first("intermediate_size", "moe_intermediate_size")),
        vocab_size=f.whole("vocab_size"),
        context_len=_limited(context_len, scaling, _json_window(f, family)),
        norm_eps=f.real("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=_json_qkv_bias(f, family, tensor_names),
        qk_norm=family in ("qwen3", "qwen3moe"),
        tied=tied,
        n_experts=n_experts,
        n_experts_used=f.whole("num_experts_per_tok") if n_experts else 0,
        expert_ffn_dim=f.whole("moe_intermediate_size") if n_experts else 0,
        norm_topk_prob=bool(n_experts) and f.flag("norm_topk_prob", False),
    )


def _refuse(architecture: str) -> NoReturn:
    raise ConfigError(
        f"architecture {architecture[:80]!r} is not supported; "
        "yakvrt runs llama, mistral, qwen2, qwen3 and qwen3moe"
    )


def _limited(context_len: int, scaling: RopeScaling | None, window: int) -> int:
    if scaling is not None:
        context_len = scaling.stretched(context_len)
    return min(context_len, window) if window > 0 else context_len


def _experts(family: str, f: Fields, key: str) -> int:
    n_experts = f.whole(key, 0)
    if n_experts and family != "qwen3moe":
        raise ConfigError(
            f"a {family} model with {n_experts} experts is not supported; only qwen3moe has them"
        )
    if not n_experts and family == "qwen3moe":
        raise ConfigError(
            f"{f.prefix}{key} of {f.source} is missing or 0; a qwen3moe model needs its experts"
        )
    return n_experts


def _family_of_json(f: Fields) -> str:
    names = f.values.get("architectures")
    named = names[0] if isinstance(names, list) and names else f.values.get("model_type")
    if not isinstance(named, str):
        raise ConfigError("config.json names no architecture; use a complete copy of the model")
    return _FAMILIES.get(named) or _refuse(named)


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict) or any(isinstance(v, dict) for v in value.values()):
        raise ConfigError(f"{key} of config.json must be one flat object; per-layer rope is not supported")
    return value


def _check_json_features(f: Fields) -> None:
    if f.text("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act {f.text('hidden_act')[:80]!r} is not supported; yakvrt runs silu")
    if f.has("quantization_config"):
        raise ConfigError(
            "config.json has a quantization_config, whose weights yakvrt does not read; "
            "use the original weights or a GGUF file"
        )
    if f.values.get("mlp_only_layers") or f.whole("decoder_sparse_step", 1) != 1:
        raise ConfigError("a model with both dense and expert layers is not supported; all must be alike")
    if f.real("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError("partial_rotary_factor other than 1 is not supported; all of a head is rotated")


def _json_window(f: Fields, family: str) -> int:
    layer_types = f.values.get("layer_types")
    if isinstance(layer_types, list) and "sliding_attention" not in layer_types:
        return 0
    if family == "llama":
        # Mistral's files have no use_sliding_window: a number there is an active window.
        return f.whole("sliding_window", 0)
    return f.whole("sliding_window", 4096) if f.flag("use_sliding_window", False) else 0


def _json_qkv_bias(f: Fields, family: str, names: Collection[str] | None) -> bool:
    """Qwen2 always has biases on q, k and v; attention_bias elsewhere puts one on the output too."""
    first = "model.layers.0."
    attention_bias = family != "qwen2" and f.flag("attention_bias", False)
    mlp_bias = f.flag("mlp_bias", False)
    if names is not None:
        attention_output_bias = first + "self_attn.o_proj.bias" in names
        mlp_bias = first + "mlp.down_proj.bias" in names
    else:
        attention_output_bias = attention_bias
    if attention_output_bias or mlp_bias:
        where = "attention output" if attention_output_bias else "MLP"
        raise ConfigError(f"a bias on the {where} is not supported; only q, k and v may have one")
    if names is not None and family != "qwen2":
        return first + "self_attn.q_proj.bias" in names
    return family == "qwen2"
