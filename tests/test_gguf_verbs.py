"""The verbs of gguf_tools that read and change metadata: dump, get, set-metadata, new-metadata."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_files import model_bytes, write

from gguf_tools.__main__ import VERBS, main
from gguf_tools.listing import data_start
from gguf_tools.reader import GGUFFile

METADATA = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "general.license": "mit",
    "llama.block_count": 1,
    "llama.rope.freq_base": 1e-5,
    "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "a", "\x1b[2J", "é", "`|`", "b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "old {{ x }}\n\x07end",
    "tokenizer.chat_templates": ["tool"],
    "tokenizer.chat_template.tool": "old tool",
    "deep": [[1, 2], [3]],
}


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {
        "token_embd.weight": ("Q8_0", weights(8, 32)),
        "blk.0.attn_q.weight": ("F32", weights(4, 8)),
        "output_norm.weight": ("F32", weights(8)),
    }
    return write(tmp_path / "m.gguf", model_bytes(METADATA, tensors))


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: str | Path) -> tuple[int, str, str]:
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(str(stop.code))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_help_lists_every_verb_and_starts_fast(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"  {verb} " in out for verb in VERBS)
    assert run()[0] == 2
    assert run("dmup") == (2, "", "gguf_tools: error: unknown verb 'dmup'; did you mean 'dump'?\n")


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("convert", "quantize")])
def test_a_verbs_help_needs_no_numpy(verb: str) -> None:
    code = (
        "import sys\nfrom gguf_tools.__main__ import main\n"
        f"try:\n    main([{verb!r}, '--help'])\nexcept SystemExit as stop:\n"
        "    assert not stop.code and 'numpy' not in sys.modules\nelse:\n    raise AssertionError"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.monotonic() - start < 2  # 0.05 s on an idle machine


def test_dump_shows_metadata_and_tensors(run: Run, model: Path) -> None:
    code, out, _ = run("dump", model)
    assert code == 0
    lines = out.splitlines()
    assert "      1: UINT32     |        1 | GGUF.version = 3" in lines
    assert "      4: STRING     |        1 | general.architecture = 'llama'" in lines
    assert "      8: FLOAT32    |        1 | llama.rope.freq_base = 1e-05" in lines
    tokens = "['<s>', '</s>', 'a', 'a', '\\x1b[2J', 'é', ...]"
    assert f"      9: [STRING]   |        8 | tokenizer.ggml.tokens = {tokens}" in lines
    assert "      1:        256 |    32,     8,     1,     1 | Q8_0    | token_embd.weight" in lines
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "token_embd.weight" not in run("dump", model, "--no-tensors")[1]


def test_dump_of_names_that_could_steer_a_terminal(run: Run, tmp_path: Path) -> None:
    nasty = "\x1b]0;title\x07\r"
    path = write(tmp_path / "n.gguf", model_bytes({nasty: 1}, {nasty: ("F32", weights(2, 2))}))
    for form in ("--json", "--markdown", "--no-tensors"):
        out = run("dump", path, form)[1]
        assert "title" in out
        assert "\x1b" not in out
        assert "\x07" not in out


def test_dump_json_agrees_with_gguf_py(run: Run, model: Path) -> None:
    from gguf import GGUFReader

    code, out, _ = run("dump", model, "--json", "--json-array")
    assert code == 0
    ours = json.loads(out)
    theirs = GGUFReader(model)
    assert (ours["filename"], ours["endian"]) == (str(model), "LITTLE")
    assert list(ours["metadata"]) == list(theirs.fields)
    for index, (name, field) in enumerate(theirs.fields.items()):
        entry = ours["metadata"][name]
        assert (entry["index"], entry["type"], entry["offset"]) == (index, field.types[0].name, field.offset)
        if name != "deep":  # gguf-py flattens what is nested
            assert entry["value"] == field.contents()
            assert entry.get("array_types", []) == [item.name for item in field.types[1:]]
    assert ours["metadata"]["deep"]["value"] == [[1, 2], [3]]
    for index, tensor in enumerate(theirs.tensors):
        entry = ours["tensors"][tensor.name]
        assert entry["index"] == index
        assert entry["shape"] == tensor.shape.tolist()
        assert entry["type"] == tensor.tensor_type.name
        assert (entry["offset"], entry["data_offset"]) == (tensor.field.offset, tensor.data_offset)
    assert run("dump", model, "--data-offset")[1] == f"{theirs.data_offset}\n"
    assert run("dump", model, "--data-alignment")[1] == "32\n"
    short = json.loads(run("dump", model, "--json", "--no-tensors")[1])
    assert "value" not in short["metadata"]["tokenizer.ggml.tokens"]
    assert short["tensors"] == {}


def test_dump_of_a_file_with_nothing_in_it(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "empty.gguf", model_bytes({}, {}))
    with GGUFFile(path) as file:
        assert data_start(file) == 32
    assert run("dump", path)[0] == run("dump", path, "--markdown")[0] == 0


def test_dump_markdown_has_every_table(run: Run, model: Path) -> None:
    code, out, _ = run("dump", model, "--markdown")
    assert code == 0
    assert "There are 15 key-value pairs in this file" in out
    assert '### <a name="blk_0">blk.0 Tensor Group</a>' in out
    rows = [line for line in out.splitlines() if line.startswith("|")]
    assert all(row.endswith("|") for row in rows)
    assert any("8.5000" in row and "32 x 8" in row for row in rows)


def test_get_prints_one_value(run: Run, model: Path) -> None:
    assert run("get", model, "general.name") == (0, "tiny\n", "")
    assert run("get", model, "llama.rope.freq_base") == (0, "1e-05\n", "")
    assert run("get", model, "tokenizer.ggml.add_bos_token") == (0, "True\n", "")
    assert run("get", model, "tokenizer.chat_template")[1] == "old {{ x }}\n\x07end\n"
    assert run("get", model, "tokenizer.ggml.tokens")[1].split("\n")[:3] == ["<s>", "</s>", "a"]
    assert json.loads(run("get", model, "deep", "--json")[1]) == [[1, 2], [3]]
    code, out, err = run("get", model, "general.nam")
    assert (code, out) == (1, "")
    assert "has no metadata key 'general.nam'; did you mean 'general.name'" in err


def test_set_metadata_changes_only_the_value(run: Run, model: Path) -> None:
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
def test_set_metadata_refuses(run: Run, model: Path, key: str, value: str, error: str) -> None:
    before = model.read_bytes()
    code, out, err = run("set-metadata", model, key, value)
    assert (code, out) == (1, "")
    assert error in err
    assert err.startswith("gguf_tools: error: ")
    assert err.count("\n") == 1
    assert model.read_bytes() == before


def test_set_metadata_guards_what_decides_how_a_file_is_read(run: Run, tmp_path: Path) -> None:
    content = model_bytes({"general.alignment": 64}, {}, alignment=64)
    path = write(tmp_path / "a.gguf", content)
    code, _, err = run("set-metadata", path, "general.alignment", "32")
    assert code == 1
    assert "--force changes it nevertheless" in err
    assert path.read_bytes() == content
    assert run("set-metadata", path, "general.alignment", "32", "--force")[0] == 0
    with GGUFFile(path) as file:
        assert file.alignment == 32


def test_new_metadata_changes_what_is_asked_and_nothing_else(run: Run, model: Path, tmp_path: Path) -> None:
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


def test_new_metadata_without_changes_is_a_copy(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("new-metadata", model, tmp_path / "copy.gguf")[0] == 0
    assert (tmp_path / "copy.gguf").read_bytes() == model.read_bytes()
    # In place too, when told so: the old file stays readable until the new one is complete.
    assert run("new-metadata", model, model, "--general-name", "new", "--force")[0] == 0
    with GGUFFile(model) as file:
        assert file.metadata["general.name"] == "new"


def test_new_metadata_with_named_templates_agrees_with_gguf_py(run: Run, model: Path, tmp_path: Path) -> None:
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
def test_new_metadata_refuses(
    run: Run, model: Path, tmp_path: Path, flags: list[str], code: int, error: str
) -> None:
    found, _, err = run("new-metadata", model, tmp_path / "out.gguf", *flags)
    assert (found, error in err) == (code, True), err
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_nothing_is_replaced_unasked(run: Run, model: Path, tmp_path: Path) -> None:
    write(tmp_path / "out.gguf", b"mine")
    code, _, err = run("new-metadata", model, tmp_path / "out.gguf")
    assert (code, "exists; choose another name or replace it with --force" in err) == (2, True)
    assert (tmp_path / "out.gguf").read_bytes() == b"mine"


def test_a_repeated_token_takes_the_first_id_and_says_so(run: Run, model: Path, tmp_path: Path) -> None:
    code, _, err = run("new-metadata", model, tmp_path / "out.gguf", "--special-token", "eos", "a")
    assert code == 0
    assert "has the ids 2, 3; 2 is taken" in err
