"""Types of a model's tensors, against known files and llama.cpp's own choice where it is installed."""

from __future__ import annotations

import ctypes
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from gguf_files import model_bytes, write

from gguf_tools.quantize_mix import FILE_TYPES, MixOptions, ModelFacts, file_type, model_facts, tensor_types
from gguf_tools.reader import GGUFFile

Described = list[tuple[str, tuple[int, ...], str]]


def described(
    n_layers: int, *, hidden: int = 256, ffn: int = 512, tied: bool = False, experts: int = 0
) -> Described:
    tensors: Described = [
        ("token_embd.weight", (256, hidden), "F16"),
        ("output_norm.weight", (hidden,), "F32"),
    ]
    if not tied:
        tensors.append(("output.weight", (256, hidden), "F16"))
    for layer in range(n_layers):
        blk = f"blk.{layer}."
        tensors += [(f"{blk}{name}_norm.weight", (hidden,), "F32") for name in ("attn", "ffn")]
        tensors += [(f"{blk}attn_{name}.weight", (hidden, hidden), "F16") for name in ("q", "output")]
        tensors += [(f"{blk}attn_{name}.weight", (hidden // 4, hidden), "F16") for name in ("k", "v")]
        end = "_exps.weight" if experts else ".weight"
        stack = (experts,) if experts else ()
        tensors += [(f"{blk}ffn_{name}{end}", (*stack, ffn, hidden), "F16") for name in ("gate", "up")]
        tensors.append((f"{blk}ffn_down{end}", (*stack, hidden, ffn), "F16"))
        if experts:
            tensors.append((f"{blk}ffn_gate_inp.weight", (experts, hidden), "F32"))
    return tensors


def test_counts_of_a_published_file() -> None:
    # Qwen2.5-Coder-1.5B Q4_K_M: Q4_K 169, Q6_K 29 (its output is not tied, 28 layers, 6 heads share one).
    types = tensor_types(described(28), ModelFacts("qwen2", 28, 6, 0), "Q4_K_M", MixOptions())
    assert Counter(types.values()) == {"Q4_K": 169, "Q6_K": 29, "F32": 57}


def test_rows_that_no_block_divides() -> None:
    tensors = described(4, hidden=288, ffn=400, tied=True)
    types = tensor_types(tensors, ModelFacts("llama", 4, 1, 0), "Q4_K_M", MixOptions())
    assert types["token_embd.weight"] == "Q8_0"
    assert types["blk.1.attn_q.weight"] == "Q5_0"
    assert types["blk.0.ffn_down.weight"] == "F16"


def test_options() -> None:
    import re

    tensors = described(4)
    facts = ModelFacts("llama", 4, 4, 0)
    options = MixOptions(
        overrides=((re.compile(r"blk\.[01]\.ffn_up"), "Q8_0"),), output_type="Q5_K", embedding_type="Q3_K"
    )
    types = tensor_types(tensors, facts, "Q4_K_S", options)
    assert [types[f"blk.{i}.ffn_up.weight"] for i in range(4)] == ["Q8_0", "Q8_0", "Q4_K", "Q4_K"]
    assert (types["output.weight"], types["token_embd.weight"]) == ("Q5_K", "Q3_K")
    pure = tensor_types(tensors, facts, "Q4_K_M", MixOptions(pure=True))
    assert set(pure.values()) == {"Q4_K", "F32"}
    left = tensor_types(tensors, facts, "Q4_K_M", MixOptions(leave_output=True))
    assert left["output.weight"] == "F16"


def test_names_of_types() -> None:
    assert [file_type(name) for name in ("q4_k_m", "Q4_K", "15", "bf16", "7")] == [
        *("Q4_K_M", "Q4_K_M", "Q4_K_M", "BF16", "Q8_0")
    ]
    with pytest.raises(ValueError, match="'Q9' is not known"):
        file_type("Q9")


@pytest.mark.parametrize("case", ["llama", "qwen2", "tied", "experts", "odd", "80 layers"])
def test_same_types_as_llamacpp(case: str, tmp_path: Path) -> None:
    llama = pytest.importorskip("llama_cpp.llama_cpp", reason="compares with llama.cpp's own choice")
    n_layers, experts = {"80 layers": 80, "experts": 6}.get(case, 8), 8 if case == "experts" else 0
    hidden, ffn = (288, 400) if case == "odd" else (256, 256)
    tensors = described(n_layers, hidden=hidden, ffn=ffn, tied=case == "tied", experts=experts)
    arch = "qwen2" if case == "qwen2" else "llama"
    keys = {
        "block_count": n_layers, "context_length": 64, "embedding_length": hidden, "feed_forward_length": ffn,
        "attention.head_count": 4, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-5,
        "vocab_size": 256, **({"expert_count": experts, "expert_used_count": 2} if experts else {}),
    }  # fmt: skip
    metadata = {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in keys.items()}}
    if arch == "qwen2":
        tensors += [
            (f"blk.{i}.attn_{n}.bias", (hidden if n == "q" else hidden // 4,), "F32")
            for i in range(n_layers)
            for n in "qkv"
        ]
    # Values matter only where a quantiser refuses to work without an importance matrix: none here.
    content = {name: (kind, np.ones(shape, np.float32)) for name, shape, kind in tensors}
    source = write(tmp_path / "in.gguf", model_bytes(metadata | {"tokenizer.ggml.model": "none"}, content))
    with GGUFFile(source) as file:
        facts = model_facts(file.metadata)
    # Deep models are slow to quantise and only their grouped attention values are special.
    mixes = ("Q3_K_S",) if n_layers == 80 else tuple(FILE_TYPES)
    for mix in mixes:
        number, _ = FILE_TYPES[mix]
        params = llama.llama_model_quantize_default_params()
        params.ftype, params.nthread = number, 1
        output = tmp_path / "out.gguf"
        assert llama.llama_model_quantize(bytes(source), bytes(output), ctypes.byref(params)) == 0
        with GGUFFile(output) as file:
            theirs = {name: tensor.format.name for name, tensor in file.tensors.items()}
        assert tensor_types(tensors, facts, mix, MixOptions()) == theirs, mix
