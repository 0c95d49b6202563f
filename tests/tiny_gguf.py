"""Writes the tiny models of tests/data as GGUF files through gguf-py, so that tests have both formats."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from golden_values import tiny_dir

Weights = dict[str, npt.NDArray[np.float32]]

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}

# Names of the hub -> names of GGUF, without the layer prefix and the .weight or .bias ending.
OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_proj": "attn_k",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}


def tiny_config(family: str) -> dict[str, Any]:
    """The model's config.json."""
    config: dict[str, Any] = json.loads((tiny_dir(family) / "config.json").read_text())
    return config


def tiny_weights(family: str) -> Weights:
    """The model's weights in float32 under GGUF names, rows in the hub's order, experts stacked.

    Shapes: matrices (rows, cols); blk.N.ffn_{gate,up,down}_exps.weight (n_experts, rows, cols).
    """
    import ml_dtypes  # noqa: F401  (makes bfloat16 known to numpy before safetensors asks for it)
    from safetensors.numpy import load_file

    weights: Weights = {}
    experts: dict[str, dict[int, npt.NDArray[np.float32]]] = {}
    for shard in sorted(tiny_dir(family).glob("*.safetensors")):
        for name, stored in load_file(shard).items():
            array = stored.astype(np.float32)
            expert = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(\w+)_proj\.weight", name)
            if expert:
                layer, index, matrix = expert.groups()
                experts.setdefault(f"blk.{layer}.ffn_{matrix}_exps.weight", {})[int(index)] = array
            else:
                weights[gguf_name(name)] = array
    for name, stack in experts.items():
        weights[name] = np.stack([stack[index] for index in range(len(stack))])
    return weights


def gguf_name(hub_name: str) -> str:
    """The GGUF name of a tensor named as on the hub."""
    stem, ending = hub_name.rsplit(".", 1)
    if stem in OUTER_NAMES:
        return f"{OUTER_NAMES[stem]}.{ending}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[inner]}.{ending}"


def interleave_rows(matrix: npt.NDArray[np.float32], n_heads: int) -> npt.NDArray[np.float32]:
    """Reorders the rows of Q or K as GGUF's architecture llama stores them: each rope pair side by side."""
    rows, cols = matrix.shape
    halves = matrix.reshape(n_heads, 2, rows // n_heads // 2, cols)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, cols))


def llama3_factors(config: dict[str, Any]) -> npt.NDArray[np.float32]:
    """The content of rope_freqs.weight: what each rope frequency is divided by under llama3 scaling.

    Shapes: [D/2].
    """
    rope = config["rope_parameters"]
    original_len = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for pair in range(config["head_dim"] // 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (2 * pair / config["head_dim"])
        if wavelength < original_len / high:
            factors.append(1.0)
        elif wavelength > original_len / low:
            factors.append(rope["factor"])
        else:
            smooth = (original_len / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def write_tiny_gguf(family: str, path: Path) -> Path:
    """Writes the model as llama.cpp's converter names and orders it: all tensors F32, no vocabulary."""
    from gguf import GGUFWriter

    config = tiny_config(family)
    arch = ARCHITECTURES[config["model_type"]]
    n_heads, n_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // n_heads

    writer = GGUFWriter(path, arch)
    writer.add_name(family)
    writer.add_file_type(0)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    if arch == "llama":
        writer.add_rope_dimension_count(head_dim)
    if arch == "qwen3moe":
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])

    weights = tiny_weights(family)
    if config["rope_parameters"]["rope_type"] == "llama3":
        weights = {"rope_freqs.weight": llama3_factors(config), **weights}
    for name, array in weights.items():
        if arch == "llama" and name.endswith("attn_q.weight"):
            array = interleave_rows(array, n_heads)
        elif arch == "llama" and name.endswith("attn_k.weight"):
            array = interleave_rows(array, n_kv_heads)
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
