"""Models whose files are damaged or contradict each other: refused before a wrong number is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import model_bytes, write
from tiny_files import split_header, tiny_copy, with_header
from tiny_gguf import write_tiny_gguf

import yakvrt
from gguf_tools.reader import GGUFFile
from yakvrt.model_source import open_model
from yakvrt.weights import check_tensors

BFLOAT16_NAN, BFLOAT16_INF = 0x7FC0, 0xFF80
FLOAT16_NAN = b"\x00\x7e"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_copy("qwen3", tmp_path / "model")


def load(model: Path, **options: Any) -> yakvrt.Engine:
    return yakvrt.load(str(model), ctx_size=64, threads=1, offline=True, **options)


def edit(path: Path, changes: Mapping[str, Any], *removed: str) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if key not in removed}))


def refused(model: Path) -> str:
    """The sentence of the loader, without the kernels."""
    with pytest.raises(ValueError, match=r".") as caught, open_model(str(model), offline=True) as source:
        check_tensors(source.config, source.tensors)
    text = str(caught.value)
    assert len(text) < 700
    assert "\n" not in text
    return text


def poison(file: Path, name: str, bits: int) -> None:
    """Overwrites the last bfloat16 of a tensor."""
    content = bytearray(file.read_bytes())
    header, data = split_header(bytes(content))
    end = len(content) - len(data) + header[name]["data_offsets"][1]
    content[end - 2 : end] = bits.to_bytes(2, "little")
    file.write_bytes(content)


# ---- configurations


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ],
)
def test_numbers_of_the_configuration(model: Path, key: str) -> None:
    config = model / "config.json"
    original = config.read_text()
    values: list[Any] = ["x", -1, 0, 1.5, 10**400, [], {}, [1, 2], [[1], [1]], True, "\n" * 10_000, 1 << 40]
    for value in values:
        config.write_text(original)
        edit(config, {key: value})
        assert key in refused(model) or "allowed" in refused(model)
    config.write_text(original)
    edit(config, {}, key)
    assert f"{key} of config.json is missing" in refused(model)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_files_that_hold_no_object(model: Path, name: str) -> None:
    path = model / name
    for content in (b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000):
        path.write_bytes(content)
        assert f"{name} " in refused(model)
    with path.open("wb") as file:
        file.truncate(100 << 20)
    assert "over 4 MiB" in refused(model)


def test_values_of_the_generation_config(model: Path) -> None:
    path = model / "generation_config.json"
    for values in (
        {"temperature": 10**400},
        {"temperature": float("nan")},
        {"top_k": 10**400},
        {"top_k": 1.5},
        {"top_p": [["x" * 10_000]]},
    ):
        path.write_text(json.dumps(values))
        assert refused(model).startswith(f"generation_config.json: {next(iter(values))} is ")


def test_impossible_ends_of_text_are_left_out(model: Path) -> None:
    path = model / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [-1, True, "x", 2, 70_000]}))
    with load(model) as engine:
        assert engine.tokenizer.eos_ids == {2, 70_000}
        answer = engine.generate([1, 2], max_tokens=3, ignore_eos=True, temperature=0)
        list(answer)
        assert len(answer.ids) == 3


def test_dummy_weights_of_a_giant_are_refused_before_they_are_made(model: Path) -> None:
    edit(model / "config.json", {"num_hidden_layers": 1024, "vocab_size": 1 << 22, "hidden_size": 1 << 16})
    with pytest.raises(ValueError, match="choose a smaller model"):
        load(model, load_format="dummy")


# ---- weights


@pytest.mark.parametrize("bits", [BFLOAT16_NAN, BFLOAT16_INF])
@pytest.mark.parametrize(
    ("hub_name", "name"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight"),
        ("model.layers.3.mlp.down_proj.weight", "blk.3.ffn_down.weight"),
        ("model.layers.1.self_attn.k_norm.weight", "blk.1.attn_k_norm.weight"),
        ("model.layers.2.input_layernorm.weight", "blk.2.attn_norm.weight"),
    ],
)
def test_weights_that_are_no_numbers(model: Path, hub_name: str, name: str, bits: int) -> None:
    poison(model / "model.safetensors", hub_name, bits)
    for dtype in ("auto", "f32", "q8_0", "q4_0"):
        with pytest.raises(ValueError, match=rf"{name}.* NaN"):
            load(model, dtype=dtype)


@pytest.mark.parametrize("place", ["mlp.gate.weight", "mlp.experts.3.up_proj.weight"])
def test_mixtures_that_are_no_numbers(tmp_path: Path, place: str) -> None:
    model = tiny_copy("qwen3-moe", tmp_path / "moe")
    name = f"model.layers.1.{place}"
    (file,) = (path for path in model.glob("*.safetensors") if name in split_header(path.read_bytes())[0])
    poison(file, name, BFLOAT16_NAN)
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_(gate_inp|up_exps)\.weight.* NaN"):
        load(model)


# Format: where its float16 scales lie in a block, and a matrix wide enough for one.
SCALES = {
    "Q4_0": ((0,), "blk.0.attn_q.weight"),
    "Q4_1": ((0, 2), "blk.0.attn_q.weight"),
    "Q5_0": ((0,), "blk.0.attn_q.weight"),
    "Q5_1": ((0, 2), "token_embd.weight"),
    "Q8_0": ((0,), "token_embd.weight"),
    "Q2_K": ((80, 82), "blk.0.ffn_down.weight"),
    "Q3_K": ((108,), "blk.0.ffn_down.weight"),
    "Q4_K": ((0, 2), "blk.0.ffn_down.weight"),
    "Q5_K": ((0, 2), "blk.0.ffn_down.weight"),
    "Q6_K": ((208,), "blk.0.ffn_down.weight"),
}


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf("qwen3", tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def rewritten(source: Path, target: Path, formats: Mapping[str, str], without: str = "") -> Path:
    """The GGUF file with some tensors quantised and one left out."""
    with GGUFFile(source) as file:
        tensors = {
            name: (formats.get(name, "F32"), np.array(tensor.data).view(np.float32))
            for name, tensor in file.tensors.items()
            if name != without
        }
        return write(target, model_bytes(dict(file.metadata), tensors))


@pytest.mark.parametrize("kind", SCALES)
def test_scales_that_are_no_numbers(tiny_gguf: Path, tmp_path: Path, kind: str) -> None:
    places, name = SCALES[kind]
    path = rewritten(tiny_gguf, tmp_path / "model.gguf", {name: kind})
    with GGUFFile(path) as file:
        start = file.tensors[name].offset
    good = path.read_bytes()
    for place in places:
        content = bytearray(good)
        content[start + place : start + place + 2] = FLOAT16_NAN
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}.* NaN"):
            load(path)


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.3.ffn_norm.weight", "output_norm.weight"])
def test_gguf_without_a_tensor(tiny_gguf: Path, tmp_path: Path, name: str) -> None:
    path = rewritten(tiny_gguf, tmp_path / "model.gguf", {}, without=name)
    with pytest.raises(ValueError, match=f"no tensor {name}; it is incomplete"):
        load(path)


def test_safetensors_without_a_matrix(model: Path) -> None:
    file = model / "model.safetensors"
    header, data = split_header(file.read_bytes())
    header["unknown"] = header.pop("model.layers.0.self_attn.q_proj.weight")
    file.write_bytes(with_header(header, data))
    with pytest.raises(ValueError, match=r"no tensor blk\.0\.attn_q\.weight"):
        load(model)


def test_weights_too_large_for_float32_end_in_a_sentence(model: Path) -> None:
    file = model / "model.safetensors"
    header, data = split_header(file.read_bytes())
    start, end = header["model.norm.weight"]["data_offsets"]
    largest = b"\x7f\x7f" * ((end - start) // 2)  # 3.4e38 in bfloat16
    file.write_bytes(with_header(header, data[:start] + largest + data[end:]))
    with load(model) as engine, pytest.raises(ValueError, match="the model produced"):
        list(engine.generate([1, 2, 3], max_tokens=2))


def test_prompts_that_do_not_fit(model: Path) -> None:
    with load(model) as engine:
        for prompt, complaint in (
            ([], "prompt is empty"),
            ([1] * 64, "prompt has 64 tokens"),
            ("", "is empty"),
        ):
            with pytest.raises(ValueError, match=complaint):
                engine.generate(prompt)
        with engine.session() as session:
            with pytest.raises(ValueError, match="65 tokens do not fit, the slot holds 64"):
                session.prefill([1] * 65)
            session.prefill([1] * 64)
            with pytest.raises(ValueError, match="65 tokens do not fit"):
                session.decode(1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"ctx_size": 2**40}, "largest that fits is --ctx-size"),
        ({"ctx_size": -1}, "out of range"),
        ({"threads": 513}, "513 threads"),
        ({"threads": -3}, "-3 threads"),
        ({"ubatch_size": 0}, "out of range"),
        ({"ubatch_size": 1 << 40}, "out of range"),
        ({"n_slots": 0}, "out of range"),
        ({"dtype": "q3"}, "not known"),
        ({"cache_type": "f64"}, "not known"),
        ({"kv": "none"}, "not known"),
        ({"load_format": "pickle"}, "not known"),
    ],
)
def test_options_out_of_range(model: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        yakvrt.load(str(model), offline=True, **options)
