"""Tensor and architecture names: the Hugging Face hub's on one side, GGUF's on the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# config.json's architecture -> general.architecture.
ARCHITECTURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "LlamaForCausalLM": "llama",
        "MistralForCausalLM": "llama",
        "Qwen2ForCausalLM": "qwen2",
        "Qwen3ForCausalLM": "qwen3",
        "Qwen3MoeForCausalLM": "qwen3moe",
    }
)
# general.architecture -> (config.json's architecture, its model_type).
HUB_ARCHITECTURES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "llama": ("LlamaForCausalLM", "llama"),
        "qwen2": ("Qwen2ForCausalLM", "qwen2"),
        "qwen3": ("Qwen3ForCausalLM", "qwen3"),
        "qwen3moe": ("Qwen3MoeForCausalLM", "qwen3_moe"),
    }
)
# Architectures whose GGUF files store each rope pair of Q and K side by side.
INTERLEAVED: Final = frozenset({"llama"})

_OUTER: Final[Mapping[str, str]] = MappingProxyType(
    {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
)
_LAYER: Final[Mapping[str, str]] = MappingProxyType(
    {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_proj": "attn_k",
        "self_attn.k_norm": "attn_k_norm",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate": "ffn_gate_inp",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
)
_OUTER_BACK: Final = MappingProxyType({gguf: hub for hub, gguf in _OUTER.items()})
_LAYER_BACK: Final = MappingProxyType({gguf: hub for hub, gguf in _LAYER.items()})
_HUB_LAYER: Final = re.compile(r"model\.layers\.(\d{1,5})\.(.+)\.(weight|bias)")
_HUB_EXPERT: Final = re.compile(r"mlp\.experts\.(\d{1,5})\.(gate|up|down)_proj")
_GGUF_LAYER: Final = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)")
_GGUF_EXPERTS: Final = re.compile(r"ffn_(gate|up|down)_exps")
_QK: Final = re.compile(r"blk\.\d+\.attn_([qk])\.(weight|bias)")
# Tensors that files carry and nobody reads: they follow from the configuration.
IGNORED: Final = re.compile(r".*(rotary_emb\.inv_freq|attn\.bias|masked_bias)")


def gguf_name(hub_name: str) -> tuple[str, int | None] | None:
    """The GGUF name of a hub tensor, and which expert of it this is (None when it is the whole).

    None for a tensor of another architecture.
    """
    stem, _, ending = hub_name.rpartition(".")
    if stem in _OUTER and ending in ("weight", "bias"):
        return f"{_OUTER[stem]}.{ending}", None
    match = _HUB_LAYER.fullmatch(hub_name)
    if match is None:
        return None
    layer, inner, ending = match.groups()
    if inner in _LAYER:
        return f"blk.{int(layer)}.{_LAYER[inner]}.{ending}", None
    expert = _HUB_EXPERT.fullmatch(inner)
    return None if expert is None else (f"blk.{int(layer)}.ffn_{expert[2]}_exps.{ending}", int(expert[1]))


def hub_names(name: str, n_experts: int) -> list[str] | None:
    """The hub's names of a GGUF tensor: one, or one for each expert; None for an unknown tensor."""
    stem, _, ending = name.rpartition(".")
    if stem in _OUTER_BACK and ending in ("weight", "bias"):
        return [f"{_OUTER_BACK[stem]}.{ending}"]
    match = _GGUF_LAYER.fullmatch(name)
    if match is None:
        return None
    layer, inner, ending = match.groups()
    if inner in _LAYER_BACK:
        return [f"model.layers.{layer}.{_LAYER_BACK[inner]}.{ending}"]
    experts = _GGUF_EXPERTS.fullmatch(inner)
    if experts is None:
        return None
    stem = f"model.layers.{layer}.mlp.experts"
    return [f"{stem}.{index}.{experts[1]}_proj.{ending}" for index in range(n_experts)]


def is_query_or_key(name: str) -> str | None:
    """ "q" or "k" for the GGUF name of a query or key projection, else None."""
    match = _QK.fullmatch(name)
    return match[1] if match else None
