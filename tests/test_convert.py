"""Hugging Face directories to GGUF and back: identical tensors, the reference's keys, golden logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_values import TINY_FAMILIES, tiny_cases, tiny_dir
from tiny_gguf import tiny_weights, write_tiny_gguf

import yakvrt
from gguf_tools.convert import main
from gguf_tools.dequantize import dequantize
from gguf_tools.formats import FORMATS
from gguf_tools.reader import GGUFFile
from gguf_tools.safetensors_file import read_safetensors
from gguf_tools.safetensors_tensors import open_safetensors, weight_files


def convert(source: Path, output: Path, *flags: str) -> Path:
    assert main([str(source), "--outfile", str(output), *flags]) == 0
    return output


def hub_weights(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    tensors = {}
    for file in weight_files(directory):
        for name, tensor in read_safetensors(file).items():
            tensors[name] = tensor.format.name, tensor.shape, tensor.data.tobytes()
    return tensors


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("outtype", ["f32", "bf16"])
def test_round_trip_keeps_every_tensor(family: str, outtype: str, tmp_path: Path) -> None:
    middle = convert(tiny_dir(family), tmp_path / "m.gguf", "--outtype", outtype)
    back = convert(middle, tmp_path / "back", "--outtype", "bf16")
    assert hub_weights(back) == hub_weights(tiny_dir(family))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_same_keys_and_tensors_as_reference(family: str, tmp_path: Path) -> None:
    ours = convert(tiny_dir(family), tmp_path / "ours.gguf", "--outtype", "f32")
    with GGUFFile(ours) as got, GGUFFile(write_tiny_gguf(family, tmp_path / "reference.gguf")) as wanted:
        arch = wanted.metadata["general.architecture"]
        for key in wanted.metadata:
            if key != "general.name":
                assert got.metadata[key] == wanted.metadata[key], key
                assert got.metadata.place(key)[0] == wanted.metadata.place(key)[0], key
        extra = [key for key in got.metadata if key.startswith(arch) and key not in wanted.metadata]
        assert extra == []
        assert got.tensors.keys() == wanted.tensors.keys()
        for name, tensor in wanted.tensors.items():
            assert got.tensors[name].shape == tensor.shape, name
            assert np.array_equal(got.tensors[name].data, tensor.data), name


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_converted_files_give_golden_logits(family: str, tmp_path: Path) -> None:
    case = tiny_cases(family)[2]
    there = convert(tiny_dir(family), tmp_path / "there.gguf", "--outtype", "f32")
    back = convert(there, tmp_path / "back", "--outtype", "f32")
    for path in (there, back):
        with yakvrt.load(str(path), dtype="f32", cache_type="f32") as engine, engine.session() as session:
            logits = np.concatenate(list(session.all_logits(case.ids)))
        assert np.abs(logits[-len(case.logits) :] - case.logits).max() < 1e-3


@pytest.mark.parametrize("family", ["llama3", "qwen3-moe"])
def test_open_safetensors_gives_gguf_order(family: str, tmp_path: Path) -> None:
    middle = convert(tiny_dir(family), tmp_path / "m.gguf", "--outtype", "f32")
    tensors = open_safetensors(tiny_dir(family))
    with GGUFFile(middle) as file:
        assert file.tensors.keys() - {"rope_freqs.weight"} == tensors.keys()
        for name, tensor in tensors.items():
            values = dequantize(tensor.read(), tensor.format.name)
            assert values.shape == tensor.shape == file.tensors[name].shape
            assert np.array_equal(values, dequantize(file.tensors[name].data, "F32")), name
            tensor.release()


@pytest.mark.parametrize("family", ["llama3", "qwen3-moe"])
def test_size_label_is_gguf_pys(family: str, tmp_path: Path) -> None:
    from gguf import GGUFWriter
    from gguf.utility import size_label

    reference = GGUFWriter(tmp_path / "r.gguf", "llama")
    with GGUFFile(convert(tiny_dir(family), tmp_path / "m.gguf", "--outtype", "f32")) as file:
        for tensor in file.tensors.values():
            if tensor.name != "rope_freqs.weight":
                reference.add_tensor_info(tensor.name, tensor.shape, np.dtype("float32"), tensor.data.nbytes)
        assert file.metadata["general.size_label"] == size_label(*reference.get_total_parameter_count())


@pytest.mark.parametrize("count", [1, 999, 1000, 99_499, 10**6, 1_500_000, 134_515_008, 7 * 10**12])
def test_size_labels(count: int) -> None:
    from gguf.utility import size_label as reference

    from gguf_tools.size_label import size_label
    from gguf_tools.writer import TensorPlan

    plans = [TensorPlan("output.weight", (count,), FORMATS["F32"])]
    assert size_label(plans) == reference(count, count, 0, 0)


def test_outtypes(tmp_path: Path) -> None:
    for outtype, kind, number in (("f16", "F16", 1), ("auto", "BF16", 32), ("q8_0", "Q8_0", 7)):
        with GGUFFile(
            convert(tiny_dir("qwen3-moe"), tmp_path / f"{outtype}.gguf", "--outtype", outtype)
        ) as file:
            assert file.metadata["general.file_type"] == number
            assert file.tensors["blk.0.attn_q.weight"].format.name == kind
            assert file.tensors["blk.0.ffn_gate_inp.weight"].format.name == "F32"
            assert file.tensors["blk.0.attn_norm.weight"].format.name == "F32"
            weights = tiny_weights("qwen3-moe")["blk.2.ffn_up_exps.weight"]
            stored = file.tensors["blk.2.ffn_up_exps.weight"]
            error = np.abs(dequantize(stored.data, stored.format.name) - weights).max()
            assert error <= np.abs(weights).max() / 100


def test_mix_as_outtype(tmp_path: Path) -> None:
    with GGUFFile(convert(tiny_dir("qwen2"), tmp_path / "m.gguf", "--outtype", "q4_k_m")) as file:
        assert file.metadata["general.file_type"] == 15
        # 128 columns hold no block of 256: the narrower type takes its place.
        assert file.tensors["blk.1.attn_q.weight"].format.name == "Q5_0"
        assert file.tensors["blk.1.ffn_down.weight"].format.name == "Q4_K"


def test_shards_and_their_index(tmp_path: Path) -> None:
    from gguf_tools.convert_to_hub import plan_hub_model, write_hub_model

    middle = convert(tiny_dir("llama3"), tmp_path / "m.gguf", "--outtype", "bf16")
    with GGUFFile(middle) as file:
        write_hub_model(plan_hub_model(file, None), tmp_path / "out", 2, lambda _: None, 400_000)
    files = weight_files(tmp_path / "out")
    assert len(files) == 4
    assert files[0].name == "model-00001-of-00004.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(
        np.prod(s) for _, s, _ in hub_weights(tmp_path / "out").values()
    )
    assert hub_weights(tmp_path / "out") == hub_weights(tiny_dir("llama3"))


def test_config_survives(tmp_path: Path) -> None:
    for family in TINY_FAMILIES:
        middle = convert(tiny_dir(family), tmp_path / f"{family}.gguf")
        back = convert(middle, tmp_path / family)
        was, now = (json.loads((d / "config.json").read_text()) for d in (tiny_dir(family), back))
        rope = was["rope_parameters"]
        assert now["rope_theta"] == rope["rope_theta"]
        scaling = now.get("rope_scaling", {"rope_type": "default"})
        assert {k: rope[k] for k in scaling} == scaling
        assert now.get("num_experts") == was.get("num_local_experts")
        for key in ("hidden_size", "intermediate_size", "rms_norm_eps", "model_type", "architectures",
                    "tie_word_embeddings", "vocab_size", "bos_token_id", "eos_token_id"):  # fmt: skip
            assert now[key] == was[key], (family, key)


def edited_config(family: str, directory: Path, **changes: Any) -> Path:
    shutil.copytree(tiny_dir(family), directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        ({"type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 16.0},
            {"type": "yarn", "factor": 4.0, "original_context_length": 512, "yarn_beta_fast": 16.0},
        ),
    ],
)
def test_rope_scaling_keys(rope: dict[str, Any], keys: dict[str, Any], tmp_path: Path) -> None:
    source = edited_config("qwen2", tmp_path / "in", rope_parameters=None, rope_scaling=rope, rope_theta=5e5)
    middle = convert(source, tmp_path / "m.gguf")
    with GGUFFile(middle) as file:
        found = {
            k.removeprefix("qwen2.rope.scaling."): file.metadata[k] for k in file.metadata if ".scaling." in k
        }
        assert found == keys
        assert file.metadata["qwen2.rope.freq_base"] == 5e5
    back = json.loads((convert(middle, tmp_path / "back") / "config.json").read_text())
    wanted = {"rope_type": rope.get("rope_type", rope.get("type")), **rope}
    wanted.pop("type", None)
    assert back["rope_scaling"] == wanted


def test_window_of_mistral_returns(tmp_path: Path) -> None:
    rope = {"rope_theta": 1e4, "rope_type": "default"}
    source = edited_config("llama32-tied", tmp_path / "in", architectures=["MistralForCausalLM"],
                           rope_parameters=rope, sliding_window=64)  # fmt: skip
    middle = convert(source, tmp_path / "m.gguf")
    with GGUFFile(middle) as file:
        assert file.metadata["general.architecture"] == "llama"
        assert file.metadata["llama.attention.sliding_window"] == 64
    back = json.loads((convert(middle, tmp_path / "back") / "config.json").read_text())
    assert (back["model_type"], back["sliding_window"]) == ("mistral", 64)


def test_dry_run_and_vocab_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "m.gguf"
    convert(tiny_dir("llama3"), output, "--dry-run")
    shown = capsys.readouterr().out
    assert "blk.3.ffn_down.weight" in shown
    assert not output.exists()
    with GGUFFile(convert(tiny_dir("llama3"), output, "--vocab-only", "--model-name", "Tiny")) as file:
        assert not file.tensors
        assert file.metadata["general.name"] == "Tiny"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "'GemmaForCausalLM' is not converted"),
        ({"num_hidden_layers": 5}, "layer 4 lacks"),
        ({"num_hidden_layers": 3}, "4 layers, config.json says 3"),
        ({"vocab_size": 600}, "config.json contradicts"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2}}, "'longrope' is not converted"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"num_attention_heads": 7}, "cannot be shared out"),
        ({"quantization_config": {"bits": 4}}, "quantised already"),
    ],
)
def test_refused_models(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = edited_config("llama32-tied", tmp_path / "in", **changes)
    assert main([str(source), "--outfile", str(tmp_path / "m.gguf")]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_values_without_a_number_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = edited_config("qwen2", tmp_path / "in")
    path = source / "model.safetensors"
    tensor = read_safetensors(path)["model.layers.1.mlp.up_proj.weight"]
    content = bytearray(path.read_bytes())
    content[tensor.offset : tensor.offset + 2] = b"\xc0\x7f"
    path.write_bytes(content)
    assert main([str(source), "--outfile", str(tmp_path / "m.gguf")]) == 1
    assert "'blk.1.ffn_up.weight' holds NaN" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_outputs_are_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = convert(tiny_dir("qwen2"), tmp_path / "m.gguf")
    assert main([str(tiny_dir("qwen2")), "--outfile", str(output)]) == 2
    convert(tiny_dir("qwen2"), output, "--force")
    convert(output, tmp_path / "back")
    assert main([str(output), "--outfile", str(tmp_path / "back")]) == 1
    assert "not an empty directory" in capsys.readouterr().err


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_llamacpp_computes_golden_logits(family: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="loads the converted file in llama.cpp")
    path = tmp_path / "m.gguf"
    assert main([str(tiny_dir(family)), "--outfile", str(path), "--outtype", "f32"]) == 0
    case = tiny_cases(family)[2]
    model = llama_cpp.Llama(
        str(path), n_ctx=128, logits_all=True, type_k=0, type_v=0, flash_attn=False, verbose=False
    )
    model.eval(case.ids)
    logits = np.array(model.scores[: len(case.ids)])[-len(case.logits) :]
    assert np.abs(logits - case.logits).max() < 1e-3
