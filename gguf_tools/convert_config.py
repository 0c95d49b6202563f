"""A model's numbers: config.json to GGUF keys and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gguf_tools.meta_value import MetaValue, ValueType, scalar, string
from gguf_tools.name_map import ARCHITECTURES, HUB_ARCHITECTURES

MAX_JSON_BYTES: Final = 64 << 20
# config.json's key -> GGUF's, for whole numbers that go over as they are.
_NUMBERS: Final = (
    ("num_hidden_layers", "block_count"),
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
)
_EXPERT_NUMBERS: Final = (
    ("num_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
)
# Keys of yarn scaling, config.json's -> GGUF's.
_YARN: Final = (
    ("extrapolation_factor", "yarn_ext_factor"),
    ("attention_factor", "yarn_attn_factor"),
    ("beta_fast", "yarn_beta_fast"),
    ("beta_slow", "yarn_beta_slow"),
)


@dataclass(frozen=True, slots=True)
class HubConfig:
    """What converting needs of a config.json; `rope` is its scaling rule, empty for none."""

    arch: str
    numbers: Mapping[str, int]
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_experts: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    rope: Mapping[str, Any]
    tied: bool
    window: int
    special_ids: Mapping[str, Any]


def read_json(path: Path) -> dict[str, Any]:
    """A file with one JSON object.

    Raises: ValueError when it is missing, too large or something else.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ValueError(f"{path}: missing; give the directory of a complete Hugging Face model") from None
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {size} bytes are over the limit of {MAX_JSON_BYTES}; fetch it again")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object; fetch it again")
    return value


def read_config(directory: Path) -> HubConfig:
    """The config.json of a model's directory.

    Raises: ValueError for an architecture or feature that has no GGUF form here, or a wrong number.
    """
    path = directory / "config.json"
    config = read_json(path)
    names = config.get("architectures")
    name = str(names[0] if isinstance(names, list) and names else "none")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{path}: architecture {name[:80]!r} is not converted; {', '.join(ARCHITECTURES)} are"
        )
    arch = ARCHITECTURES[name]
    if config.get("quantization_config"):
        raise ValueError(f"{path}: the weights are quantised already; convert the original model")
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise ValueError(f"{path}: dense layers between expert layers have no GGUF form")
    numbers = dict(config)
    numbers.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    if "num_experts" not in numbers:
        numbers["num_experts"] = config.get("num_local_experts")
    has_experts = arch == "qwen3moe"
    wanted = [*_NUMBERS, *(_EXPERT_NUMBERS if has_experts else ())]
    values = {gguf: _whole(path, numbers, key) for key, gguf in wanted}
    n_heads, hidden = values["attention.head_count"], values["embedding_length"]
    # transformers gives Qwen3 heads of 128 where the file is silent.
    default_dim = 128 if arch.startswith("qwen3") else hidden // n_heads
    head_dim = default_dim if config.get("head_dim") is None else _whole(path, config, "head_dim")
    rope = _mapping(path, config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    return HubConfig(
        arch=arch,
        numbers=values,
        n_heads=n_heads,
        n_kv_heads=values["attention.head_count_kv"],
        head_dim=head_dim,
        n_experts=values["expert_count"] if has_experts else 0,
        vocab_size=_whole(path, config, "vocab_size"),
        norm_eps=_real(path, "rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
        rope_theta=_real(path, "rope_theta", theta),
        rope=_scaling(path, rope),
        tied=config.get("tie_word_embeddings", False) is True,
        window=_window(config, name),
        special_ids={key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )


def model_keys(config: HubConfig) -> dict[str, MetaValue]:
    """The architecture's GGUF keys, as llama.cpp's converter names them."""
    numbers: dict[str, int] = dict(config.numbers)
    numbers["attention.key_length"] = numbers["attention.value_length"] = config.head_dim
    numbers["vocab_size"] = config.vocab_size
    if config.arch == "llama":
        numbers["rope.dimension_count"] = config.head_dim
    if config.window:
        numbers["attention.sliding_window"] = config.window
    keys = {key: scalar(ValueType.UINT32, value) for key, value in numbers.items()}
    keys["rope.freq_base"] = scalar(ValueType.FLOAT32, config.rope_theta)
    keys["attention.layer_norm_rms_epsilon"] = scalar(ValueType.FLOAT32, config.norm_eps)
    keys |= _scaling_keys(config)
    return {f"{config.arch}.{key}": value for key, value in keys.items()}


def _scaling_keys(config: HubConfig) -> dict[str, MetaValue]:
    """linear and yarn are keys; llama3 is the tensor rope_freqs.weight instead."""
    rope, prefix = config.rope, "rope.scaling."
    if rope.get("rope_type") not in ("linear", "yarn"):
        return {}
    keys = {
        f"{prefix}type": string(rope["rope_type"]),
        f"{prefix}factor": scalar(ValueType.FLOAT32, rope["factor"]),
    }
    if rope["rope_type"] == "yarn":
        original = rope.get("original_max_position_embeddings", config.numbers["context_length"])
        keys[f"{prefix}original_context_length"] = scalar(ValueType.UINT32, original)
        for hub, gguf in _YARN:
            if rope.get(hub) is not None:
                keys[f"{prefix}{gguf}"] = scalar(ValueType.FLOAT32, rope[hub])
    return keys


def hub_config(metadata: Mapping[str, Any], *, vocab_size: int, tied: bool, biases: bool) -> dict[str, Any]:
    """The config.json of a GGUF file, its rope_freqs.weight not yet considered.

    Raises: ValueError for an architecture or a number that has no form there.
    """
    arch = str(metadata.get("general.architecture"))
    if arch not in HUB_ARCHITECTURES:
        raise ValueError(f"architecture {arch[:80]!r} is not converted; {', '.join(HUB_ARCHITECTURES)} are")
    path = Path("the GGUF file")
    has_experts = arch == "qwen3moe"
    values = {key.removeprefix(f"{arch}."): metadata[key] for key in metadata if key.startswith(f"{arch}.")}
    if values.get("attention.head_count_kv") is None:
        values["attention.head_count_kv"] = values.get("attention.head_count")
    wanted = [*_NUMBERS, *(_EXPERT_NUMBERS if has_experts else ())]
    numbers = {hub: _whole(path, values, gguf) for hub, gguf in wanted if gguf != "feed_forward_length"}
    feed_forward = values.get("feed_forward_length") or values.get("expert_feed_forward_length")
    numbers["intermediate_size"] = _whole(path, {"feed_forward_length": feed_forward}, "feed_forward_length")
    if not has_experts and values.get("expert_count"):
        raise ValueError(f"a {arch} model with experts is not converted; only qwen3moe has them")
    architecture, model_type = HUB_ARCHITECTURES[arch]
    head_dim = values.get("attention.key_length", numbers["hidden_size"] // numbers["num_attention_heads"])
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        **numbers,
        "head_dim": _whole(path, {"head_dim": head_dim}, "head_dim"),
        "vocab_size": vocab_size,
        "rms_norm_eps": _shortest(_real(path, "epsilon", values.get("attention.layer_norm_rms_epsilon"))),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "rope_theta": _shortest(_real(path, "rope.freq_base", values.get("rope.freq_base", 10000.0))),
    }
    if arch != "qwen2":
        config["attention_bias"] = biases
    if has_experts:
        config |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
    window = values.get("attention.sliding_window", 0)
    if arch == "llama" and window:
        # The hub's Llama knows no window; Mistral is the same model with one.
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    elif window:
        config |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    scaling = _hub_scaling(path, values, config["max_position_embeddings"])
    return config | ({"rope_scaling": scaling} if scaling else {})


def _hub_scaling(path: Path, values: Mapping[str, Any], context_len: int) -> dict[str, Any]:
    prefix = "rope.scaling."
    factor = values.get(f"{prefix}factor", values.get("rope.scale_linear", 1.0))
    kind = values.get(f"{prefix}type", "none" if factor in (0, 1) else "linear")
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise ValueError(f"rope scaling {str(kind)[:80]!r} is not converted; linear, yarn and llama3 are")
    scaling = {"rope_type": kind, "factor": _shortest(_real(path, f"{prefix}factor", factor))}
    if kind == "yarn":
        original = values.get(f"{prefix}original_context_length", context_len)
        scaling["original_max_position_embeddings"] = original
        for hub, gguf in _YARN:
            if (value := values.get(f"{prefix}{gguf}")) is not None:
                scaling[hub] = _shortest(_real(path, gguf, value))
    return scaling


def _shortest(value: float) -> float:
    """The shortest decimal number with the same float32, so that 1e-05 stays 1e-05."""
    import numpy as np

    return float(str(np.float32(value)))


def _scaling(path: Path, rope: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {}
    if kind not in ("linear", "yarn", "llama3"):
        raise ValueError(
            f"{path}: rope scaling {str(kind)[:80]!r} is not converted; linear, yarn, llama3 are"
        )
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _real(path, "factor", rope.get("factor"))}
    needed = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ()
    for key in (*needed, *(hub for hub, _ in _YARN)):
        if key in needed or rope.get(key) is not None:
            scaling[key] = _real(path, key, rope.get(key))
    original = "original_max_position_embeddings"
    if kind == "llama3" or rope.get(original) is not None:
        scaling[original] = _whole(path, rope, original)
    return scaling


def _mapping(path: Path, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or any(isinstance(item, dict) for item in value.values()):
        raise ValueError(f"{path}: rope_parameters is not one flat object, which GGUF cannot say")
    return value


def _window(config: Mapping[str, Any], name: str) -> int:
    active = name == "MistralForCausalLM" or config.get("use_sliding_window") is True
    window = config.get("sliding_window")
    return window if active and type(window) is int and window > 0 else 0


def _whole(path: Path, values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise ValueError(f"{path}: {key} is {str(value)[:80]}; it must be a whole number above 0")
    return value


def _real(path: Path, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e30:
        raise ValueError(f"{path}: {key} is {str(value)[:80]}; it must be a number")
    return float(value)
