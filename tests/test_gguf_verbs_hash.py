"""The verb hash of gguf_tools: its lines, and checks against manifests."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_files import write
from gguf_verb import run, save_seven_layers, seven_layers

from gguf_tools.quantize import quantize

LAYERS = seven_layers()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_seven_layers(tmp_path / "m.gguf")


def test_hash_lines_are_those_of_the_data(model: Path) -> None:
    code, out, _ = run("hash", model, "--sha256", "--sha1")
    assert code == 0
    whole = b"".join(quantize(x, "Q8_0").tobytes() for _, x in LAYERS.values())
    first = quantize(LAYERS["blk.0.attn_q.weight"][1], "Q8_0").tobytes()
    lines = out.splitlines()
    assert len(lines) == 2 * (len(LAYERS) + 1)
    assert f"sha256    {hashlib.sha256(first).hexdigest()}  {model}:blk.0.attn_q.weight" in lines
    assert f"sha1      {hashlib.sha1(whole).hexdigest()}  {model}" in lines
    assert run("hash", model, "--no-layer")[1] == f"sha256    {hashlib.sha256(whole).hexdigest()}  {model}\n"


def test_hash_agrees_with_gguf_pys_script(model: Path) -> None:
    script = [sys.executable, "-m", "gguf.scripts.gguf_hash", str(model)]
    theirs = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    ours = run("hash", model, "--sha1", "--sha256")[1].splitlines()
    assert sorted(ours) == sorted(line for line in theirs if not line.startswith("uuid"))


def test_a_manifest_checks_renamed_split_and_damaged_models(model: Path, tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.manifest", run("hash", model, "--sha256", "--sha1")[1].encode())
    moved = model.rename(tmp_path / "moved.gguf")
    code, out, err = run("hash", moved, "-c", manifest)
    assert (code, err) == (0, "")
    assert out.count("  -  Ok\n") == len(LAYERS) + 1
    assert "sha1" not in out
    assert out.endswith("Success\n")
    assert run("hash", moved, "-c", manifest, "--sha1")[1].count("sha1 ") == len(LAYERS) + 1
    run("split", moved, tmp_path / "p", "--split-max-tensors", "2")
    assert run("hash", tmp_path / "p-00003-of-00004.gguf", "--check", manifest)[0] == 0
    raw = bytearray(moved.read_bytes())
    raw[-40] ^= 1
    moved.write_bytes(raw)
    code, out, err = run("hash", moved, "-c", manifest)
    assert code == 1
    assert out.count("Not Ok") == 2  # the tensor and the whole
    assert "blk.6.attn_q.weight: sha256 is" in err
    assert run("verify", moved, "--manifest", manifest)[0] == 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "holds no hashes"),
        ("# nothing\nuuid  1-2  m.gguf\n", "holds no hashes"),
        ("md5  00  m.gguf\n", "line 1 is 'md5 00 m.gguf'"),
        ("sha256  00\n", "line 1"),
    ],
)
def test_manifests_that_are_none(model: Path, tmp_path: Path, text: str, error: str) -> None:
    manifest = write(tmp_path / "x.manifest", text.encode())
    code, _, err = run("hash", model, "-c", manifest)
    assert (code, error in err) == (1, True), err


def test_manifest_of_other_tensors_or_algorithms(model: Path, tmp_path: Path) -> None:
    lines = run("hash", model)[1].splitlines(keepends=True)
    short = write(tmp_path / "short", "".join([*lines[1:], f"sha256  00  {model}:gone\n"]).encode())
    code, _, err = run("hash", model, "-c", short)
    assert code == 1
    assert "blk.0.attn_q.weight: not in the manifest" in err
    assert "gone: not in the model" in err
    assert "the manifest has sha256 only" in run("hash", model, "-c", short, "--sha1")[2]
    # Neither the whole alone nor the tensors alone is incomplete.
    assert run("hash", model, "-c", write(tmp_path / "whole", lines[-1].encode()))[0] == 0
    assert run("hash", model, "-c", write(tmp_path / "parts", "".join(lines[:-1]).encode()))[0] == 0


def test_xxh64_needs_its_package(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    code, _, err = run("hash", model, "--xxh64")
    assert (code, err) == (2, "gguf_tools: error: xxh64 needs the xxhash package; pip install xxhash, "
                              "or use --sha256\n")  # fmt: skip
