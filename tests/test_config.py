"""ModelConfig from config.json, and its refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yakvrt.config import (
    ConfigError,
    ModelConfig,
    RopeScaling,
    config_from_json,
    rope_frequencies,
)

DATA = Path(__file__).parent / "data" / "config"
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
QWEN = replace(DENSE, norm_eps=1e-6, rope_theta=1e6)
EXPECTED = {
    "llama3": (replace(DENSE, rope_scaling=LLAMA3), 689280),
    "llama32-tied": (replace(DENSE, rope_scaling=replace(LLAMA3, factor=32.0), tied=True), 623744),
    "qwen2": (replace(QWEN, family="qwen2", qkv_bias=True, tied=True), 624512),
    "qwen3": (replace(QWEN, family="qwen3", head_dim=32, qk_norm=True, tied=True), 787840),
    "qwen3-moe": (
        replace(
            QWEN,
            family="qwen3moe",
            head_dim=32,
            qk_norm=True,
            n_experts=8,
            n_experts_used=2,
            expert_ffn_dim=64,
            norm_topk_prob=True,
        ),
        1250688,
    ),
}


def read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return config


def changed(name: str, **changes: Any) -> dict[str, Any]:
    """A fixture's config with keys changed, or removed where the change is Ellipsis."""
    return {k: v for k, v in (read(name) | changes).items() if v is not ...}


@pytest.mark.parametrize("name", EXPECTED)
def test_json_families(name: str) -> None:
    expected, n_params = EXPECTED[name]
    assert config_from_json(read(name)) == expected
    assert expected.n_params == n_params


def test_old_key_names() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 256}
    old = changed("llama3", rope_parameters=..., rope_theta=500000.0, rope_scaling=rope, dtype=...)
    old |= {"torch_dtype": "bfloat16"}
    assert config_from_json(old) == EXPECTED["llama3"][0]
    del rope["rope_type"]
    assert config_from_json(old | {"rope_scaling": rope | {"type": "llama3"}}) == EXPECTED["llama3"][0]
    moe = changed("qwen3-moe", num_local_experts=..., num_experts=8, rope_parameters=..., rope_theta=1e6)
    assert config_from_json(moe | {"rope_scaling": None}) == EXPECTED["qwen3-moe"][0]


def test_mistral_and_defaults() -> None:
    mistral = changed(
        "llama3", architectures=["MistralForCausalLM"], rope_parameters=..., head_dim=None, rope_theta=1e6
    )
    config = config_from_json(mistral | {"sliding_window": None})
    assert config == replace(DENSE, rope_theta=1e6)
    silent = changed("llama3", rope_parameters=..., head_dim=..., num_key_value_heads=..., architectures=...)
    assert config_from_json(silent) == replace(DENSE, n_kv_heads=8, rope_theta=10000.0)
    assert config_from_json(changed("qwen3", head_dim=...)).head_dim == 128
    assert config_from_json(changed("qwen3-moe", norm_topk_prob=...)).norm_topk_prob is False


def test_sliding_window_limits_the_context() -> None:
    mistral = changed("llama3", architectures=["MistralForCausalLM"], max_position_embeddings=32768)
    assert config_from_json(mistral | {"sliding_window": 4096}).context_len == 4096
    assert config_from_json(mistral | {"sliding_window": None}).context_len == 32768
    qwen = changed("qwen2", sliding_window=1000, layer_types=...)
    assert config_from_json(qwen).context_len == 4096
    assert config_from_json(qwen | {"use_sliding_window": True}).context_len == 1000
    mixed = {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]}
    assert config_from_json(qwen | mixed).context_len == 1000


def test_yarn_stretches_the_context() -> None:
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    config = config_from_json(changed("qwen2", rope_parameters=..., rope_theta=1e6, rope_scaling=rope))
    assert config.rope_scaling == RopeScaling("yarn", 4.0, 4096)
    assert config.context_len == 16384
    ratio = {"rope_type": "yarn", "original_max_position_embeddings": 1024, "rope_theta": 1e6}
    config = config_from_json(changed("qwen2", rope_parameters=ratio | {"attention_factor": 1.5}))
    assert config.rope_scaling == RopeScaling("yarn", 4.0, 1024, attn_factor=1.5)
    assert config.context_len == 4096


def test_tensor_names_settle_tied_and_biases() -> None:
    q_bias, o_bias = "model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.o_proj.bias"
    assert not config_from_json(read("llama3"), {"lm_head.weight"}).tied
    assert config_from_json(read("llama3"), {"model.embed_tokens.weight"}).tied
    assert config_from_json(read("llama32-tied"), {"lm_head.weight"}).tied
    assert config_from_json(read("llama3"), {q_bias}).qkv_bias
    assert config_from_json(changed("llama3", attention_bias=True), {q_bias}).qkv_bias
    assert not config_from_json(changed("llama3", attention_bias=True), ()).qkv_bias
    with pytest.raises(ConfigError, match="bias on the attention output"):
        config_from_json(read("llama3"), {q_bias, o_bias})
    with pytest.raises(ConfigError, match="bias on the attention output"):
        config_from_json(changed("llama3", attention_bias=True))
    with pytest.raises(ConfigError, match="bias on the MLP"):
        config_from_json(changed("llama3", mlp_bias=True))


JSON_REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    (
        "llama3",
        {"architectures": ["Gemma3ForCausalLM"]},
        "^architecture 'Gemma3ForCausalLM' is not supported; "
        "yakvrt runs llama, mistral, qwen2, qwen3 and qwen3moe$",
    ),
    ("llama3", {"architectures": [], "model_type": "phi3"}, "architecture 'phi3' is not supported"),
    ("llama3", {"architectures": ..., "model_type": ...}, "names no architecture"),
    ("llama3", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ("llama3", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("llama3", {"num_hidden_layers": ...}, "num_hidden_layers of config.json is missing"),
    ("llama3", {"num_hidden_layers": "4"}, "is '4'; it must be a whole number"),
    ("llama3", {"num_hidden_layers": True}, "is True; it must be a whole number"),
    ("llama3", {"num_hidden_layers": 4.0}, "is 4.0; it must be a whole number"),
    ("llama3", {"num_hidden_layers": 1 << 80}, "must be a whole number"),
    ("llama3", {"num_hidden_layers": 1025}, "n_layers is 1025; 1 to 1024 are allowed"),
    ("llama3", {"num_hidden_layers": 0}, "n_layers is 0"),
    ("llama3", {"num_attention_heads": 0}, "n_heads is 0"),
    ("llama3", {"num_key_value_heads": 3}, "n_heads 8 is not a multiple of n_kv_heads 3"),
    ("llama3", {"num_key_value_heads": 0}, "n_kv_heads is 0"),
    ("llama3", {"head_dim": 24}, "head_dim is 24; multiples of 16"),
    ("llama3", {"head_dim": 512}, "head_dim is 512; 16 to 256"),
    ("llama3", {"vocab_size": 1 << 23}, "vocab_size is 8388608; 1 to 4194304"),
    ("llama3", {"rms_norm_eps": -1.0}, "norm_eps is -1.0"),
    ("llama3", {"rms_norm_eps": float("nan")}, "must be a number"),
    ("llama3", {"rms_norm_eps": 10**400}, "must be a number"),
    ("llama3", {"rope_parameters": {"rope_theta": 1.0}}, "rope_theta is 1.0"),
    ("llama3", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
    ("llama3", {"rope_parameters": {"rope_type": "linear", "factor": 0.0}}, "factor 0.0 is out of range"),
    ("llama3", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "is missing"),
    ("llama3", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "one flat object"),
    ("llama3", {"rope_parameters": [1]}, "one flat object"),
    ("llama3", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
    ("llama3", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale"),
    ("llama3", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_slow": 64}}, "beta_slow"),
    ("llama3", {"tie_word_embeddings": "yes"}, "must be true or false"),
    ("llama3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama3", {"num_local_experts": 8}, "llama model with 8 experts is not supported"),
    ("qwen3-moe", {"num_local_experts": ...}, "missing or 0"),
    ("qwen3-moe", {"num_experts_per_tok": 9}, "9 of 8 experts"),
    ("qwen3-moe", {"moe_intermediate_size": 0}, "experts of width 0"),
    ("qwen3-moe", {"mlp_only_layers": [0]}, "both dense and expert layers"),
    ("qwen3-moe", {"decoder_sparse_step": 2}, "both dense and expert layers"),
]


@pytest.mark.parametrize(("name", "changes", "message"), JSON_REFUSALS)
def test_json_refusals(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config_from_json(changed(name, **changes))
    assert "\n" not in str(caught.value)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=3)), max_size=2),
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(EXPECTED)), st.data())
def test_any_json_is_a_config_or_an_error(name: str, data: st.DataObject) -> None:
    config = read(name)
    for target in (config, config["rope_parameters"]):
        for key in data.draw(st.lists(st.sampled_from(sorted(target)), max_size=3)):
            target[key] = data.draw(JUNK)
    try:
        parsed = config_from_json(config)
        rope_frequencies(parsed)
        assert parsed.n_params > 0
    except ConfigError:
        return


def test_json_that_is_no_object() -> None:
    with pytest.raises(ConfigError, match="not an object"):
        config_from_json([1, 2])  # type: ignore[arg-type]
