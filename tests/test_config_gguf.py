"""ModelConfig from GGUF keys, and its refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_files import model_bytes, write

from gguf_tools.reader import GGUFFile
from yakvrt.config import ConfigError, ModelConfig, RopeScaling, config_from_gguf

# 2^-17 survives the file's float32 unchanged.
GGUF = ModelConfig(
    family="llama",
    n_layers=4,
    n_heads=8,
    n_kv_heads=2,
    head_dim=16,
    hidden_dim=128,
    ffn_dim=256,
    vocab_size=512,
    context_len=4096,
    norm_eps=0.5**17,
    rope_theta=500000.0,
)


def gguf_config(tmp_path: Path, arch: str, extra: dict[str, object], names: tuple[str, ...]) -> ModelConfig:
    keys: dict[str, object] = {
        "block_count": 4,
        "context_length": 4096,
        "embedding_length": 128,
        "feed_forward_length": 256,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 0.5**17,
        "rope.freq_base": 500000.0,
    }
    metadata = {"general.architecture": arch} | {f"{arch}.{k}": v for k, v in (keys | extra).items()}
    small = np.zeros(32, np.float32)
    tensors = dict.fromkeys(names, ("F32", small)) | {"token_embd.weight": ("Q8_0", np.zeros((512, 128)))}
    with GGUFFile(write(tmp_path / "m.gguf", model_bytes(metadata, tensors))) as file:
        return config_from_gguf(file.metadata, file.tensors)


def test_gguf_families(tmp_path: Path) -> None:
    assert gguf_config(tmp_path, "llama", {}, ("output.weight",)) == GGUF
    assert gguf_config(tmp_path, "mistral", {}, ()) == replace(GGUF, tied=True)
    head = {"attention.key_length": 32, "attention.value_length": 32}
    qwen2 = gguf_config(tmp_path, "qwen2", {}, ("blk.0.attn_q.bias", "output.weight"))
    assert qwen2 == replace(GGUF, family="qwen2", qkv_bias=True)
    qwen3 = gguf_config(tmp_path, "qwen3", head, ("blk.0.attn_q_norm.weight",))
    assert qwen3 == replace(GGUF, family="qwen3", head_dim=32, qk_norm=True, tied=True)
    experts = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 64}
    moe = gguf_config(tmp_path, "qwen3moe", head | experts, ("blk.0.attn_q_norm.weight", "output.weight"))
    assert moe == replace(
        GGUF,
        family="qwen3moe",
        head_dim=32,
        qk_norm=True,
        n_experts=8,
        n_experts_used=2,
        expert_ffn_dim=64,
        norm_topk_prob=True,
    )


def test_gguf_details(tmp_path: Path) -> None:
    per_layer = {"attention.head_count_kv": [2, 2, 2, 2], "attention.head_count": 8}
    assert gguf_config(tmp_path, "llama", per_layer, ("output.weight",)) == GGUF
    assert gguf_config(tmp_path, "llama", {}, ("rope_freqs.weight",)).rope_factors_tensor
    assert gguf_config(tmp_path, "llama", {"attention.sliding_window": 1024}, ()).context_len == 1024


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scale_linear": 2.0}, RopeScaling("linear", 2.0)),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 1024,
            },
            RopeScaling("yarn", 4.0, 1024),
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.yarn_beta_fast": 16.0,
                "rope.scaling.yarn_beta_slow": 2.0,
                "rope.scaling.yarn_attn_factor": 1.25,
                "rope.scaling.attn_factor": 0.5,
            },
            RopeScaling("yarn", 4.0, 4096, beta_fast=16.0, beta_slow=2.0, attn_factor=0.625),
        ),
    ],
)
def test_gguf_rope(tmp_path: Path, extra: dict[str, object], expected: RopeScaling | None) -> None:
    assert gguf_config(tmp_path, "qwen2", extra, ()).rope_scaling == expected


@pytest.mark.parametrize(
    ("arch", "extra", "names", "message"),
    [
        ("gemma3", {}, (), "^architecture 'gemma3' is not supported; yakvrt runs llama, mistral, qwen2"),
        ("llama", {"attention.head_count_kv": [2, 4]}, (), "differs from layer to layer"),
        ("llama", {"embedding_length": 256}, (), r"token_embd.weight has shape \(512, 128\); .* rows of 256"),
        ("llama", {"attention.value_length": 32}, (), "value_length is 32; .* equal to head_dim 16"),
        ("llama", {"rope.dimension_count": 8}, (), "dimension_count is 8"),
        ("llama", {"expert_count": 8}, (), "llama model with 8 experts"),
        ("llama", {"rope.scaling.type": "longrope"}, (), "'longrope' is not supported"),
        ("llama", {"rope.scaling.type": "yarn"}, (), "factor 0.0 is out of range"),
        ("llama", {}, ("rope_factors_long.weight",), "'longrope' is not supported"),
        ("llama", {}, ("blk.0.attn_output.bias",), "has a blk.0.attn_output.bias"),
        ("llama", {"block_count": "4"}, (), "llama.block_count of the GGUF file is '4'"),
    ],
)
def test_gguf_refusals(
    tmp_path: Path, arch: str, extra: dict[str, object], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        gguf_config(tmp_path, arch, extra, names)


def test_gguf_without_the_essentials() -> None:
    with pytest.raises(ConfigError, match=r"general\.architecture of the GGUF file is missing"):
        config_from_gguf({}, {})
    metadata = {"general.architecture": "llama", "llama.embedding_length": 128}
    with pytest.raises(ConfigError, match=r"llama\.attention\.head_count of the GGUF file is missing"):
        config_from_gguf(metadata, {})
    with pytest.raises(ConfigError, match=r"token_embd\.weight is missing"):
        config_from_gguf(metadata | {"llama.attention.head_count": 8}, {})
