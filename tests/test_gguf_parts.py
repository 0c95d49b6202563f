"""Models in parts from convert and quantize, and outputs that are links or lie nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_verb import names, run, save_seven_layers
from golden_values import tiny_dir

from gguf_tools.convert import main as convert
from gguf_tools.reader import GGUFFile
from gguf_tools.split import open_split, part_paths
from gguf_tools.writer import GGUFWriter


@pytest.mark.parametrize(
    ("flags", "counts"),
    [
        (["--split-max-tensors", "20"], [20, 20, 10]),
        (["--split-max-tensors", "100"], [50]),
        (["--split-max-tensors", "30", "--no-tensor-first-split"], [0, 30, 20]),
        (["--split-max-size", "1G"], [50]),
    ],
)
def test_convert_in_parts_is_the_same_model(tmp_path: Path, flags: list[str], counts: list[int]) -> None:
    whole, parts = tmp_path / "whole.gguf", tmp_path / "p.gguf"
    assert convert([str(tiny_dir("qwen2")), "--outfile", str(whole)]) == 0
    assert convert([str(tiny_dir("qwen2")), "--outfile", str(parts), *flags]) == 0
    if len(counts) == 1:
        assert parts.read_bytes() == whole.read_bytes()  # as in llama.cpp's converter: no split keys
        return
    first = tmp_path / f"p-00001-of-{len(counts):05d}.gguf"
    for path, count in zip(part_paths(first), counts, strict=True):
        with GGUFFile(path) as part:
            assert len(part.tensors) == count
    assert run("merge", first, tmp_path / "merged.gguf")[0] == 0
    assert (tmp_path / "merged.gguf").read_bytes() == whole.read_bytes()
    assert convert([str(tiny_dir("qwen2")), "--outfile", str(parts), *flags]) == 2  # they are there


def test_convert_by_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert([str(tiny_dir("qwen3-moe")), "--outfile", str(tmp_path / "p"), "--split-max-size", "1M",
                    "--outtype", "f32"]) == 0  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(names(tmp_path)) > 1
    for path in tmp_path.iterdir():
        with GGUFFile(path) as part:
            size = sum(tensor.data.nbytes for tensor in part.tensors.values())
            assert size <= 10**6 or len(part.tensors) == 1


def test_limits_are_for_gguf_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_seven_layers(tmp_path / "m.gguf")
    assert convert([str(model), "--split-max-tensors", "2"]) == 2
    assert "for GGUF output" in capsys.readouterr().err


def test_a_failing_conversion_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "p-00002-of-00003.gguf").mkdir()
    flags = ["--split-max-tensors", "20", "--force"]
    assert convert([str(tiny_dir("qwen2")), "--outfile", str(tmp_path / "p"), *flags]) == 1
    assert names(tmp_path) == ["p-00002-of-00003.gguf"]


def test_keep_split_keeps_the_parts(tmp_path: Path) -> None:
    model = save_seven_layers(tmp_path / "m.gguf")
    assert run("split", model, tmp_path / "s", "--split-max-tensors", "3")[0] == 0
    first = tmp_path / "s-00001-of-00003.gguf"
    for output in ("q", "q.gguf"):  # an ending is no part of the stem
        code, out, err = run("quantize", "--keep-split", "--force", first, tmp_path / output, "Q8_0", "1")
        assert (code, err) == (0, "")
        assert "q-00001-of-00003.gguf: " in out
    assert run("quantize", first, tmp_path / "one.gguf", "Q8_0")[0] == 0
    assert run("merge", tmp_path / "q-00001-of-00003.gguf", tmp_path / "merged.gguf")[0] == 0
    with GGUFFile(tmp_path / "one.gguf") as one, GGUFFile(tmp_path / "merged.gguf") as merged:
        assert dict(merged.metadata) == dict(one.metadata)
        assert {n: t.data.tobytes() for n, t in merged.tensors.items()} == {
            n: t.data.tobytes() for n, t in one.tensors.items()
        }
    with (
        open_split(part_paths(first)) as was,
        open_split(part_paths(tmp_path / "q-00001-of-00003.gguf")) as now,
    ):
        assert [list(part.tensors) for part in now.parts] == [list(part.tensors) for part in was.parts]
    code, _, err = run("quantize", "--keep-split", "--force", first, tmp_path / "s", "Q8_0")
    assert (code, "is the input too" in err) == (2, True)
    assert run("quantize", "--keep-split", model, tmp_path / "whole.gguf", "Q8_0")[0] == 0  # of one part


LINK_LOOP = "a link that leads back to itself; remove it"
NO_FOLDER = "does not exist; create the directory first"


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("loop.gguf", LINK_LOOP),
        ("two.gguf", LINK_LOOP),
        ("absent/x.gguf", NO_FOLDER),
        ("absent/deeper/x.gguf", NO_FOLDER),
        ("m.gguf/x.gguf", "is not a directory; create the directory first"),
        ("dangling/x.gguf", NO_FOLDER),
        ("out-of-reach.gguf", NO_FOLDER),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, output: str, error: str) -> None:
    model = save_seven_layers(tmp_path / "m.gguf")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "two.gguf").symlink_to("three.gguf")
    (tmp_path / "three.gguf").symlink_to("two.gguf")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "out-of-reach.gguf").symlink_to("absent/x.gguf")
    before = names(tmp_path)
    target = tmp_path / output
    for command in (
        ("new-metadata", model, target),
        ("quantize", model, target, "Q8_0"),
        ("convert", tiny_dir("qwen2"), "--outfile", target),
    ):
        code, _, err = run(*command, "--force")
        assert (code, error in err, err.count("\n")) == (1, True, 1), err
    assert names(tmp_path) == before
    assert (tmp_path / "loop.gguf").is_symlink()


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    assert convert([str(tiny_dir("qwen2")), "--outfile", str(tmp_path / "m.gguf")]) == 0
    (tmp_path / "loop").symlink_to("loop")
    for output, error in ((tmp_path / "absent" / "back", NO_FOLDER), (tmp_path / "loop", LINK_LOOP)):
        code, _, err = run("convert", tmp_path / "m.gguf", "--outfile", output)
        assert (code, error in err) == (1, True), err
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert run("convert", tmp_path / "m.gguf", "--outfile", tmp_path / "link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").exists()


def test_a_link_to_a_file_is_written_through_with_force_only(tmp_path: Path) -> None:
    model = save_seven_layers(tmp_path / "m.gguf")
    (tmp_path / "far").mkdir()
    real = tmp_path / "far" / "real.gguf"
    real.write_bytes(b"old")
    link = tmp_path / "link.gguf"
    link.symlink_to(real)
    assert run("new-metadata", model, link)[0] == 2
    assert real.read_bytes() == b"old"
    with GGUFWriter(link, {}, []):
        assert len(names(real.parent)) == 2  # the unfinished file lies beside the target, not the link
    assert real.read_bytes()[:4] == b"GGUF"
    assert run("new-metadata", model, link, "--force")[0] == 0
    assert link.is_symlink()
    assert real.read_bytes() == model.read_bytes()
    assert names(real.parent) == ["real.gguf"]
