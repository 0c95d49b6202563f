"""Damaged model directories and GGUF files: one sentence each, and no output."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import model_bytes, write
from golden_values import tiny_dir

from gguf_tools.convert import main
from gguf_tools.safetensors_file import SafetensorsError, read_safetensors
from gguf_tools.safetensors_tensors import open_safetensors


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (file_of(entry(), bytes(16), length=1 << 63), "cannot be"),
        (file_of(entry(), bytes(16), length=4000), "cannot be"),
        (file_of(b"[" * 5000, bytes(16)), "not JSON"),
        (file_of(b"\xff\xfe{}{}{}"), "not JSON"),
        (file_of([1, 2, 3, 4]), "no JSON object"),
        (file_of(entry(), bytes(15)), "outside the file"),
        (file_of(entry(data_offsets=[16, 0]), bytes(16)), "outside the file"),
        (file_of(entry(data_offsets=[0, 12]), bytes(16)), "does not fill"),
        (file_of(entry(shape=[2, 3]), bytes(16)), "does not fill"),
        (file_of(entry(shape=[1 << 40, 1 << 40]), bytes(16)), "does not fill"),
        (file_of(entry(shape=[-2, -2]), bytes(16)), "malformed shape"),
        (file_of(entry(shape=[2.0, 2]), bytes(16)), "malformed shape"),
        (file_of(entry(shape=[]), bytes(16)), "holds no weights"),
        (file_of(entry(shape=[0, 2]), bytes(16)), "holds no weights"),
        (file_of(entry(dtype="I64"), bytes(16)), "'I64'"),
        (file_of({"a": 3}, bytes(16)), "the type"),
        (file_of(entry() | {"b": entry()["a"]}, bytes(16)), "overlap"),
    ],
)
def test_damaged_safetensors(content: bytes, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", content)
    with pytest.raises(SafetensorsError, match=message):
        read_safetensors(path)


def test_truncated_anywhere(tmp_path: Path) -> None:
    whole = file_of(entry(), bytes(16))
    for size in range(len(whole)):
        with pytest.raises(SafetensorsError):
            read_safetensors(write(tmp_path / "t.safetensors", whole[:size]))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda index: {}, "not a safetensors index"),
        (lambda index: {"weight_map": {"a": "../model.safetensors"}}, "which cannot be"),
        (lambda index: {"weight_map": {"a": "gone.safetensors"}}, "missing, but the index names it"),
    ],
)
def test_damaged_index(edit: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_dir("qwen3-moe"), tmp_path / "in"))
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        open_safetensors(directory)


def test_a_missing_shard_lacks_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = Path(shutil.copytree(tiny_dir("qwen3-moe"), tmp_path / "in"))
    (directory / "model.safetensors.index.json").unlink()
    (directory / "model-00002-of-00002.safetensors").unlink()
    assert main([str(directory), "--outfile", str(tmp_path / "m.gguf")]) == 1
    assert "the model is incomplete" in capsys.readouterr().err


def test_missing_experts(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_dir("qwen3-moe"), tmp_path / "in"))
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_local_experts": 16}))
    with pytest.raises(ValueError, match=r"8 experts found, config\.json says 16"):
        open_safetensors(directory)


def test_directories_that_are_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "config.json: missing" in capsys.readouterr().err
    shutil.copy(tiny_dir("qwen2") / "config.json", tmp_path)
    assert main([str(tmp_path)]) == 1
    assert "no .safetensors file" in capsys.readouterr().err


GGUF_KEYS: dict[str, object] = {
    "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 64,
    "llama.embedding_length": 32, "llama.feed_forward_length": 64, "llama.attention.head_count": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "tensors", "message"),
    [
        ({"general.architecture": "gemma3"}, {}, "'gemma3' is not converted"),
        ({"llama.block_count": 0}, {}, "block_count is 0"),
        ({"llama.attention.head_count": "x"}, {}, "head_count is x"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, {}, "'longrope'"),
        ({"llama.expert_count": 4}, {}, "only qwen3moe has them"),
        ({}, {"v.weight": (4, 32)}, "no name on the hub"),
        ({}, {"blk.0.attn_q.weight": (48, 32)}, "has 48 rows"),
        ({}, {"rope_freqs.weight": (8,)}, "follows no llama3 rule"),
        ({"tokenizer.ggml.model": "bert"}, {}, "of kind 'bert'"),
        ({"tokenizer.ggml.model": "gpt2"}, {}, "tokens is not a list"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "a"]}, {}, "merges|occurs twice"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"],
          "tokenizer.ggml.bos_token_id": 9}, {}, "outside the vocabulary"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"],
          "tokenizer.ggml.pre": "x"}, {}, "pre-tokenizer 'x'"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a", "b", "c"]}, {}, "one score"),
    ],
)  # fmt: skip
def test_gguf_files_without_a_hub_form(
    keys: dict[str, object], tensors: dict[str, tuple[int, ...]], message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shapes = {"token_embd.weight": (8, 32), **tensors}
    ramp = {
        name: ("F32", np.arange(1, np.prod(s) + 1, dtype=np.float32).reshape(s)) for name, s in shapes.items()
    }
    source = write(tmp_path / "in.gguf", model_bytes(GGUF_KEYS | keys, ramp))
    assert main([str(source), "--outfile", str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]
