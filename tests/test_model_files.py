"""Names and local paths become files, or one sentence that says what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_gguf

from yakvrt import hub, pull
from yakvrt.bench_facts import model_facts
from yakvrt.hub import HubError
from yakvrt.model_files import files_at
from yakvrt.model_source import open_model

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}).encode()
SHARDED = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors.index.json": INDEX,
    SHARDS[0]: b"first",
    SHARDS[1]: b"second",
}
UNWANTED = {"pytorch_model.bin": b"pickle", "consolidated.safetensors": b"again", "onnx/model.onnx": b"no"}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("lama3.2-3b", "nearest: llama3.2-3b"),
        ("", "unknown model ''"),
        ("a\0b", "unknown model"),
        ("x" * 5000, "unknown model"),
        ("/nowhere/model.gguf", "does not exist: check the path"),
        ("nowhere/model.gguf", "does not exist: check the path"),
        ("~/nowhere/at/all", "does not exist: check the path"),
        ("~nobody-of-this-name/x.gguf", "does not exist: check the path"),
        ("../../etc", "does not exist|holds no"),
    ],
)
def test_names_that_are_nothing(model: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HubError, match=reason):
        hub.resolve(model)
    if "\0" not in model:
        assert pull.main([model]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("yakvrt: error: ")
        assert err.count("\n") == 1


def test_a_user_without_a_home_is_told_to_set_the_cache() -> None:
    script = (
        "import os, pwd; pwd.getpwuid = lambda uid: {}[uid]; os.environ.clear();"
        "from yakvrt import models, pull; raise SystemExit(models.main([]) + pull.main(['smollm2-135m']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("yakvrt: error: there is no home directory") == 2


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        pull.main([])
    assert caught.value.code == 2


def write(directory: Path, files: dict[str, bytes]) -> Path:
    """Writes files into a directory."""
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def test_local_directory_and_single_files(tmp_path: Path) -> None:
    model = write(tmp_path / "model", {**SHARDED, **UNWANTED})
    files = hub.resolve(str(model))
    assert (files.name, [path.name for path in files.weights]) == ("model", list(SHARDS))
    assert files.tokenizer_config == model / "tokenizer_config.json"
    assert hub.resolve(model / SHARDS[1]).weights == files.weights
    single = write(
        tmp_path / "single", {"config.json": b"{}", "model.safetensors": b"", "other-F32.gguf": b""}
    )
    assert hub.resolve(single).weights == (single / "model.safetensors",)
    assert hub.resolve(single).tokenizer is None
    assert hub.resolve(single / "other-F32.gguf").weights == (single / "other-F32.gguf",)
    assert hub.resolve(single / "other-F32.gguf").config is None


def test_gguf_splits_are_collected_from_any_of_them(tmp_path: Path) -> None:
    names = [f"m-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    model = write(tmp_path, dict.fromkeys(names, b""))
    for given in (model, *(model / name for name in names)):
        assert [path.name for path in hub.resolve(given).weights] == names
    (model / names[1]).unlink()
    with pytest.raises(HubError, match=r"lacks m-00002-of-00003.gguf \(1 of 3 splits are missing\)"):
        hub.resolve(model / names[0])


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"README.md": b""}, "no .gguf or .safetensors file"),
        ({"config.json": b"{}", "pytorch_model.bin": b""}, "only pickled weights"),
        ({"model.safetensors": b""}, "lacks config.json"),
        ({"config.json": b"{}", "a.safetensors": b"", "b.safetensors": b""}, "2 safetensors files and no"),
        ({"a-Q8_0-x.gguf": b"", "m-00009-of-00003.gguf": b""}, None),
        ({"m-00009-of-00003.gguf": b""}, "not a split of at most"),
        ({"m-00001-of-99999.gguf": b""}, "not a split of at most"),
        ({"config.json": b"{}", "model.safetensors.index.json": b"{"}, "no valid safetensors index"),
        (
            {"config.json": b"{}", "model.safetensors.index.json": b"[" * 100_000},
            "no valid safetensors index",
        ),
        ({"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {}}'}, "names 0 shards"),
        (
            {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": 3}}'},
            "names the shard 3",
        ),
        ({"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": [1]}}'}, "no valid"),
        (
            {
                "config.json": b"{}",
                "model.safetensors.index.json": b'{"weight_map": {"a": "/etc/x.safetensors"}}',
            },
            "outside its directory",
        ),
        ({"config.json": b"{}", "model.safetensors.index.json": INDEX, SHARDS[0]: b""}, "lacks model-00002"),
    ],
)
def test_directories_that_are_no_model(tmp_path: Path, files: dict[str, bytes], reason: str | None) -> None:
    write(tmp_path, files)
    if reason is None:
        assert files_at(tmp_path).weights[0].name == "a-Q8_0-x.gguf"
        return
    with pytest.raises(HubError, match=reason) as caught:
        files_at(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_oversized_index_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, {"config.json": b"{}"})
    with (tmp_path / "model.safetensors.index.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(HubError, match="over 64 MiB"):
        files_at(tmp_path)


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; from yakvrt import models, pull; models.build_parser().format_help();"
        "pull.build_parser().format_help(); "
        "heavy = {'numpy', 'numba', 'huggingface_hub', 'rich', 'tokenizers'};"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"


def test_a_directory_is_not_searched_below_itself(tmp_path: Path) -> None:
    write(tmp_path, {"below/model.gguf": b"", "closed/model.gguf": b""})
    (tmp_path / "closed").chmod(0)
    with pytest.raises(HubError, match=r"holds no \.gguf or \.safetensors file"):
        files_at(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    write(tmp_path, {"model.gguf": b""})
    assert files_at(tmp_path).weights == (tmp_path / "model.gguf",)


def test_a_directory_of_several_models_says_how_to_choose(tmp_path: Path) -> None:
    write(tmp_path, {"b-IQ1_S.gguf": b"", "a-IQ1_S.gguf": b""})
    told = rf"{tmp_path} holds 2 models \(a-IQ1_S, b-IQ1_S\): give one of them, as {tmp_path}/a-IQ1_S\.gguf$"
    with pytest.raises(HubError, match=told):
        files_at(tmp_path)
    assert hub.resolve(f"{tmp_path}/a-IQ1_S.gguf").weights == (tmp_path / "a-IQ1_S.gguf",)
    with pytest.raises(HubError, match=r"no GGUF file of quant Q8_0: choose one of a-IQ1_S, b-IQ1_S$"):
        files_at(tmp_path, "Q8_0")


@pytest.mark.parametrize("name", ["model.GGUF", "sha256-0123", "model.bin"])
def test_a_gguf_file_is_known_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    path = write_tiny_gguf("qwen2", tmp_path / name)
    assert hub.resolve(str(path)).weights == (path,)
    with open_model(str(path)) as source:
        assert source.weight_files == (path,)
    assert model_facts(hub.resolve(path), "qwen2").n_params > 0
    path.write_bytes(b"GGML")
    if path.suffix != ".GGUF":
        with pytest.raises(HubError, match="is no model file"):
            hub.resolve(path)


def test_a_directory_may_hold_its_gguf_in_capitals(tmp_path: Path) -> None:
    write(tmp_path, {"model.GGUF": b""})
    assert files_at(tmp_path).weights == (tmp_path / "model.GGUF",)
