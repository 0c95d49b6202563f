"""The verbs of gguf_tools that change metadata: set-metadata in place, new-metadata as a copy."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_files import model_bytes, write
from gguf_verb import run, save_chat_model

from gguf_tools.reader import GGUFFile


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_chat_model(tmp_path / "m.gguf")


def test_set_metadata_changes_only_the_value(model: Path) -> None:
    before = model.read_bytes()
    code, out, _ = run("set-metadata", model, "tokenizer.ggml.bos_token_id", "0x5", "--dry-run")
    assert code == 0
    assert "tokenizer.ggml.bos_token_id: 0 -> 5 (UINT32 at byte" in out
    assert model.read_bytes() == before
    assert run("set-metadata", model, "tokenizer.ggml.bos_token_id", "5")[0] == 0
    assert run("set-metadata", model, "llama.rope.freq_base", "5e5")[0] == 0
    assert run("set-metadata", model, "tokenizer.ggml.add_bos_token", "false")[0] == 0
    after = model.read_bytes()
    assert len(after) == len(before)
    assert sum(a != b for a, b in zip(after, before, strict=True)) <= 4 + 1 + 1
    changed = {
        "tokenizer.ggml.bos_token_id": 5,
        "llama.rope.freq_base": 5e5,
        "tokenizer.ggml.add_bos_token": False,
    }
    with GGUFFile(model) as file:
        assert dict(file.metadata) == {**file.metadata, **changed}
    assert "is 5 already" in run("set-metadata", model, "tokenizer.ggml.bos_token_id", "5")[1]


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("general.name", "x", "write a changed copy with new-metadata"),
        ("tokenizer.ggml.tokens", "x", "is an array; only numbers"),
        ("llama.block_count", "-1", "'-1' does not fit the metadata type UINT32"),
        ("llama.block_count", "4294967296", "does not fit"),
        ("llama.block_count", "1.5", "'1.5' is not a value of type UINT32"),
        ("llama.rope.freq_base", "1e39", "does not fit the metadata type FLOAT32"),
        ("tokenizer.ggml.add_bos_token", "maybe", "give true or false"),
        ("llama.block_counts", "1", "did you mean 'llama.block_count'"),
    ],
)
def test_set_metadata_refuses(model: Path, key: str, value: str, error: str) -> None:
    before = model.read_bytes()
    code, out, err = run("set-metadata", model, key, value)
    assert (code, out) == (1, "")
    assert error in err
    assert err.startswith("gguf_tools: error: ")
    assert err.count("\n") == 1
    assert model.read_bytes() == before


def test_set_metadata_guards_what_decides_how_a_file_is_read(tmp_path: Path) -> None:
    content = model_bytes({"general.alignment": 64}, {}, alignment=64)
    path = write(tmp_path / "a.gguf", content)
    code, _, err = run("set-metadata", path, "general.alignment", "32")
    assert code == 1
    assert "--force changes it nevertheless" in err
    assert path.read_bytes() == content
    assert run("set-metadata", path, "general.alignment", "32", "--force")[0] == 0
    with GGUFFile(path) as file:
        assert file.alignment == 32


def test_new_metadata_changes_what_is_asked_and_nothing_else(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    template = write(tmp_path / "t.jinja", b"{{ neu }}\n")
    code, said, _ = run(
        "new-metadata", model, out, "--general-name", "neu", "--general-description", "Ä",
        "--chat-template-file", template, "--pre-tokenizer", "llama-bpe",
        "--remove-metadata", "general.license",
        "--special-token", "eos", "</s>", "--special-token-by-id", "padding", "7",
    )  # fmt: skip
    assert code == 0
    assert "13 metadata keys (were 12), 3 tensors" in said
    gone = ("general.license", "tokenizer.chat_templates", "tokenizer.chat_template.tool")
    with GGUFFile(model) as old, GGUFFile(out) as new:
        expected = {key: value for key, value in old.metadata.items() if key not in gone} | {
            "general.name": "neu",
            "general.description": "Ä",
            "tokenizer.chat_template": "{{ neu }}\n",
            "tokenizer.ggml.pre": "llama-bpe",
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.padding_token_id": 7,
        }
        assert dict(new.metadata) == expected
        for key in set(new.metadata) & set(old.metadata):
            assert new.metadata.place(key)[0] == old.metadata.place(key)[0]
        for name, tensor in old.tensors.items():
            assert np.array_equal(new.tensors[name].data, tensor.data)


def test_new_metadata_without_changes_is_a_copy(model: Path, tmp_path: Path) -> None:
    assert run("new-metadata", model, tmp_path / "copy.gguf")[0] == 0
    assert (tmp_path / "copy.gguf").read_bytes() == model.read_bytes()
    # In place too, when told so: the old file stays readable until the new one is complete.
    assert run("new-metadata", model, model, "--general-name", "new", "--force")[0] == 0
    with GGUFFile(model) as file:
        assert file.metadata["general.name"] == "new"


def test_new_metadata_with_named_templates_agrees_with_gguf_py(model: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader, GGUFWriter

    templates = [{"name": "default", "template": "D"}, {"name": "to-ol", "template": "T"}]
    writer = GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_chat_template(templates)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    config = write(tmp_path / "tokenizer_config.json", json.dumps({"chat_template": templates}).encode())
    for flag, value in (("--chat-template", json.dumps(templates)), ("--chat-template-config", config)):
        assert run("new-metadata", model, tmp_path / "ours.gguf", flag, value, "--force")[0] == 0
        ours, theirs = (
            {k: f.contents() for k, f in GGUFReader(tmp_path / name).fields.items() if "chat_template" in k}
            for name in ("ours.gguf", "theirs.gguf")
        )
        assert ours == theirs
        assert len(ours) == 3


@pytest.mark.parametrize(
    ("flags", "code", "error"),
    [
        (["--remove-metadata", "general.architecture", "--force"], 1, "cannot be removed"),
        (["--remove-metadata", "llama.block_count"], 1, "remove it with --force"),
        (["--remove-metadata", "general.nonsense"], 1, "no metadata key 'general.nonsense' to remove"),
        (["--special-token", "eos", "<nope>"], 1, "'<nope>' is not in the vocabulary"),
        (["--special-token", "end", "</s>"], 2, "unknown special token 'end'; known are bos eos"),
        (["--special-token-by-id", "eos", "8"], 1, "has ids 0 to 7"),
        (["--special-token-by-id", "eos", "-1"], 1, "'-1' is not a token id"),
        (["--chat-template", "[1"], 2, "is not JSON"),
        (["--chat-template", "[1]"], 1, "holds objects"),
        (["--chat-template", "a", "--chat-template-file", "b"], 2, "not allowed with"),
        (["--chat-template-file", "/nonexistent"], 1, "No such file or directory: /nonexistent"),
        (["--chat-template-file", sys.executable], 1, "not UTF-8 at byte"),
        (["--chat-template-config", __file__], 1, "not JSON"),
    ],
)
def test_new_metadata_refuses(model: Path, tmp_path: Path, flags: list[str], code: int, error: str) -> None:
    found, _, err = run("new-metadata", model, tmp_path / "out.gguf", *flags)
    assert (found, error in err) == (code, True), err
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_nothing_is_replaced_unasked(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "out.gguf", b"mine")
    code, _, err = run("new-metadata", model, tmp_path / "out.gguf")
    assert (code, "exists; choose another name or replace it with --force" in err) == (2, True)
    assert (tmp_path / "out.gguf").read_bytes() == b"mine"


def test_a_repeated_token_takes_the_first_id_and_says_so(model: Path, tmp_path: Path) -> None:
    code, _, err = run("new-metadata", model, tmp_path / "out.gguf", "--special-token", "eos", "a")
    assert code == 0
    assert "has the ids 2, 3; 2 is taken" in err
