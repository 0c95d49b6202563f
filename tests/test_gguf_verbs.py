"""The verbs of gguf_tools in general; dump and get."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gguf_files import model_bytes, write
from gguf_verb import run, save_chat_model, weights

from gguf_tools.__main__ import VERBS
from gguf_tools.listing import data_start
from gguf_tools.reader import GGUFFile


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_chat_model(tmp_path / "m.gguf")


def test_help_lists_every_verb() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"  {verb} " in out for verb in VERBS)
    assert run()[0] == 2
    assert run("dmup") == (2, "", "gguf_tools: error: unknown verb 'dmup'; did you mean 'dump'?\n")


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_needs_no_numpy(verb: str) -> None:
    code = (
        "import sys\nfrom gguf_tools.__main__ import main\n"
        f"try:\n    main([{verb!r}, '--help'])\nexcept SystemExit as stop:\n"
        "    assert not stop.code and 'numpy' not in sys.modules\nelse:\n    raise AssertionError"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.monotonic() - start < 2  # 0.05 s on an idle machine


def test_dump_shows_metadata_and_tensors(model: Path) -> None:
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


def test_dump_of_names_that_could_steer_a_terminal(tmp_path: Path) -> None:
    nasty = "\x1b]0;title\x07\r"
    path = write(tmp_path / "n.gguf", model_bytes({nasty: 1}, {nasty: ("F32", weights(1, 2, 2))}))
    for form in ("--json", "--markdown", "--no-tensors"):
        out = run("dump", path, form)[1]
        assert "title" in out
        assert "\x1b" not in out
        assert "\x07" not in out


def test_dump_json_agrees_with_gguf_py(model: Path) -> None:
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


def test_dump_of_a_file_with_nothing_in_it(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.gguf", model_bytes({}, {}))
    with GGUFFile(path) as file:
        assert data_start(file) == 32
    assert run("dump", path)[0] == run("dump", path, "--markdown")[0] == 0


def test_dump_markdown_has_every_table(model: Path) -> None:
    code, out, _ = run("dump", model, "--markdown")
    assert code == 0
    assert "There are 15 key-value pairs in this file" in out
    assert '### <a name="blk_0">blk.0 Tensor Group</a>' in out
    rows = [line for line in out.splitlines() if line.startswith("|")]
    assert all(row.endswith("|") for row in rows)
    assert any("8.5000" in row and "32 x 8" in row for row in rows)


def test_get_prints_one_value(model: Path) -> None:
    assert run("get", model, "general.name") == (0, "tiny\n", "")
    assert run("get", model, "llama.rope.freq_base") == (0, "1e-05\n", "")
    assert run("get", model, "tokenizer.ggml.add_bos_token") == (0, "True\n", "")
    assert run("get", model, "tokenizer.chat_template")[1] == "old {{ x }}\n\x07end\n"
    assert run("get", model, "tokenizer.ggml.tokens")[1].split("\n")[:3] == ["<s>", "</s>", "a"]
    assert json.loads(run("get", model, "deep", "--json")[1]) == [[1, 2], [3]]
    code, out, err = run("get", model, "general.nam")
    assert (code, out) == (1, "")
    assert "has no metadata key 'general.nam'; did you mean 'general.name'" in err
