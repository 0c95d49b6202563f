"""The verbs of gguf_tools that write whole files: split and merge; broken input and interruptions."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gguf_files import model_bytes, write
from gguf_verb import names, run, save_chat_model, save_seven_layers, seven_layers, weights

from gguf_tools.__main__ import VERBS
from gguf_tools.quantize import quantize
from gguf_tools.reader import GGUFFile
from gguf_tools.split import open_split, part_paths

METADATA = {"general.architecture": "llama"}
LAYERS = seven_layers()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_seven_layers(tmp_path / "m.gguf")


@pytest.mark.parametrize("alignment", [32, 64])
@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        (["--split-max-tensors", "3"], [3, 3, 1]),
        ([], [7]),
        (["--split-max-tensors", "7"], [7]),
        (["--split-max-tensors", "4", "--no-tensor-first-split"], [0, 4, 3]),
        (["--split-max-size", "1M"], [7]),
    ],
)
def test_merge_of_split_is_the_same_file(
    tmp_path: Path, flags: list[str], sizes: list[int], alignment: int
) -> None:
    model = save_seven_layers(tmp_path / "m.gguf", alignment)
    code, out, _ = run("split", model, tmp_path / "part", *flags)
    assert code == 0
    assert out.count("\n") == len(sizes)
    first = tmp_path / f"part-00001-of-{len(sizes):05d}.gguf"
    for index, (path, size) in enumerate(zip(part_paths(first), sizes, strict=True)):
        with GGUFFile(path) as part:
            assert len(part.tensors) == size
            split_keys = {k: v for k, v in part.metadata.items() if k.startswith("split.")}
            assert split_keys == {
                "split.no": index,
                "split.count": len(sizes),
                "split.tensors.count": len(LAYERS),
            }
            # The types llama.cpp writes: UINT16, UINT16, INT32.
            assert [part.metadata.place(key)[0] for key in split_keys] == [2, 2, 5]
            assert ("general.architecture" in part.metadata) == (index == 0)
    assert run("merge", first, tmp_path / "merged.gguf")[0] == 0
    assert (tmp_path / "merged.gguf").read_bytes() == model.read_bytes()


def test_split_by_size_keeps_parts_below_it(tmp_path: Path) -> None:
    tensors = {f"t{i}": ("F32", weights(i, 100, 1000)) for i in range(5)}
    tensors["huge"] = ("F32", weights(9, 1000, 600))
    model = write(tmp_path / "m.gguf", model_bytes(METADATA, tensors))
    code, _, _ = run("split", model, tmp_path / "p", "--split-max-size", "1M")
    assert code == 0
    counts = []
    for path in part_paths(tmp_path / "p-00001-of-00004.gguf"):
        with GGUFFile(path) as part:
            counts.append(len(part.tensors))
    # Two tensors of 0.4 MB fit into a million bytes; one of 2.4 MB gets a part of its own.
    assert counts == [2, 2, 1, 1]


def test_parts_written_by_gguf_py_merge(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "x.gguf", "llama", split_max_tensors=3)
    for name, (_, x) in LAYERS.items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert run("merge", tmp_path / "x-00001-of-00003.gguf", tmp_path / "y.gguf")[0] == 0
    with GGUFFile(tmp_path / "y.gguf") as file:
        assert dict(file.metadata) == {"general.architecture": "llama"}
        for name, (_, x) in LAYERS.items():
            assert np.array_equal(file.tensors[name].data, quantize(x, "F32"))


def test_dry_runs_write_nothing(model: Path, tmp_path: Path) -> None:
    code, out, _ = run("split", model, tmp_path / "p", "--split-max-tensors", "4", "--dry-run")
    assert code == 0
    assert "p-00002-of-00002.gguf: 3 tensors" in out
    assert names(tmp_path) == ["m.gguf"]
    run("split", model, tmp_path / "p", "--split-max-tensors", "4")
    before = names(tmp_path)
    assert run("merge", tmp_path / "p-00001-of-00002.gguf", tmp_path / "o.gguf", "--dry-run")[0] == 0
    assert names(tmp_path) == before


def test_what_split_and_merge_refuse(model: Path, tmp_path: Path) -> None:
    def refuses(code: int, error: str, *args: str | Path) -> None:
        before = names(tmp_path)
        found, _, err = run(*args)
        assert (found, error in err) == (code, True), err
        assert names(tmp_path) == before

    refuses(1, "is not a part of a split model", "merge", model, tmp_path / "o.gguf")
    for size in ("2", "2K", "0M", "-1M", "1e3M", "G"):
        refuses(2, "is not a size", "split", model, tmp_path / "p", f"--split-max-size={size}")
    refuses(2, "not a number of tensors", "split", model, tmp_path / "p", "--split-max-tensors", "0")
    refuses(
        2, "not allowed with", "split", model, tmp_path / "p", "--split-max-tensors", "1",
        "--split-max-size", "1M",
    )  # fmt: skip
    assert run("split", model, tmp_path / "p", "--split-max-tensors", "4")[0] == 0
    refuses(2, "p-00001-of-00002.gguf exists", "split", model, tmp_path / "p", "--split-max-tensors", "4")
    first, second = tmp_path / "p-00001-of-00002.gguf", tmp_path / "p-00002-of-00002.gguf"
    refuses(1, "join the parts with merge first", "split", first, tmp_path / "q")
    refuses(2, "exists; choose another name", "merge", first, model)
    second.rename(tmp_path / "away")
    refuses(1, "this part of the model is missing", "merge", first, tmp_path / "o.gguf")


def test_a_failing_split_removes_the_parts_it_wrote(model: Path, tmp_path: Path) -> None:
    # The second part cannot be written: its name is a directory's.
    (tmp_path / "p-00002-of-00002.gguf").mkdir()
    code, _, err = run("split", model, tmp_path / "p", "--split-max-tensors", "4", "--force")
    assert code == 1
    assert "not a regular file" in err
    assert names(tmp_path) == ["m.gguf", "p-00002-of-00002.gguf"]


READING = {
    "dump": [],
    "get": ["general.name"],
    "set-metadata": ["general.name", "1", "--dry-run"],
    "inspect-tensor": ["blk.0.attn_q.weight"],
    "hash": [],
    "verify": [],
    "compare": ["SELF"],
    "split": ["OUT"],
    "merge": ["OUT"],
    "new-metadata": ["OUT"],
}


def test_every_verb_refuses_a_broken_file_in_one_line(tmp_path: Path) -> None:
    assert {*READING, "convert", "quantize"} == set(VERBS)
    raw = save_seven_layers(tmp_path / "broken.gguf").read_bytes()
    for n in (0, 3, 30, 100, len(raw) // 2):
        broken = write(tmp_path / "broken.gguf", raw[:n])
        for verb, rest in READING.items():
            if verb == "merge":
                continue  # below
            paths = {"SELF": str(broken), "OUT": str(tmp_path / "out")}
            code, out, err = run(verb, broken, *(paths.get(arg, arg) for arg in rest))
            assert code == 1
            if verb == "verify":
                assert "structure  FAILED" in out
            else:
                assert err.startswith(f"gguf_tools: error: {broken}: ")
                assert err.count("\n") == 1
    assert run("merge", broken, tmp_path / "out")[0] == 1
    assert run("dump", tmp_path / "absent.gguf")[2].startswith("gguf_tools: error: No such file or directory")
    assert names(tmp_path) == ["broken.gguf"]


def test_damaged_files_never_cause_an_internal_error(tmp_path: Path) -> None:
    raw = save_chat_model(tmp_path / "whole.gguf").read_bytes()
    dice = random.Random(4)
    damaged = tmp_path / "damaged.gguf"
    commands: dict[str, list[str | Path]] = {
        "dump": [],
        "get": ["tokenizer.ggml.tokens"],
        "verify": [],
        "inspect-tensor": ["token_embd.weight"],
        "hash": [],
        "compare": [tmp_path / "whole.gguf"],
        "new-metadata": [tmp_path / "out.gguf", "--force", "--special-token", "eos", "b"],
        "split": [tmp_path / "p", "--force"],
    }
    for _ in range(120):
        changed = bytearray(raw[: dice.choice([len(raw), 1 + dice.randrange(len(raw))])])
        for _ in range(dice.randint(0, 4)):
            changed[dice.randrange(len(changed))] = dice.choice([0, 1, 7, 8, 9, 127, 128, 255])
        damaged.write_bytes(changed)
        for verb, rest in commands.items():
            code, _, err = run(verb, damaged, *rest)
            assert code in (0, 1), (verb, err)
            assert "internal error" not in err, (verb, err)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_copy_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    # A sparse model of 2 GB: copying takes long enough to be interrupted.
    tensors = {"a": ("F32", weights(1, 1, 8))}
    raw = bytearray(model_bytes(METADATA, tensors))
    at = raw.index(b"a" + (2).to_bytes(4, "little") + (8).to_bytes(8, "little")) + 5
    raw[at : at + 8] = (1 << 29).to_bytes(8, "little")
    model = write(tmp_path / "m.gguf", bytes(raw))
    os.truncate(model, len(raw) + (4 << 29))
    verb = subprocess.Popen(
        [sys.executable, "-m", "gguf_tools", "new-metadata", str(model), str(tmp_path / "out.gguf")],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.005)
    verb.send_signal(number)
    assert verb.wait(20) == code
    assert names(tmp_path) == ["m.gguf"]


def test_progress_shows_on_a_terminal_only() -> None:
    master, slave = os.openpty()
    shows = (
        "import time\nfrom gguf_tools.terminal import Progress\n"
        "with Progress('copying', 4 << 20) as progress:\n"
        "    time.sleep(0.6)\n    progress.add(1 << 20)\n    progress.add(1)\n"
    )
    subprocess.run([sys.executable, "-c", shows], stderr=slave, check=True)
    text = os.read(master, 1000).decode()
    os.close(master)
    os.close(slave)
    assert text.startswith("\rcopying  25 %  ")
    assert text.count("copying") == 1
    assert text.endswith("left\x1b[K\r\x1b[K")
    silent = subprocess.run([sys.executable, "-c", shows], stderr=subprocess.PIPE, check=True)
    assert silent.stderr == b""


def test_real_models_survive_split_and_merge(smollm2_path: Path, tmp_path: Path) -> None:
    assert run("split", smollm2_path, tmp_path / "s", "--split-max-size", "40M")[0] == 0
    first = tmp_path / "s-00001-of-00003.gguf"
    assert run("merge", first, tmp_path / "m.gguf")[0] == 0
    assert (tmp_path / "m.gguf").read_bytes() == smollm2_path.read_bytes()
    with open_split(part_paths(first)) as parts, GGUFFile(smollm2_path) as whole:
        assert list(parts.tensors) == list(whole.tensors)


def test_opening_a_large_vocabulary_is_fast(qwen_coder_path: Path) -> None:
    start = time.monotonic()
    with GGUFFile(qwen_coder_path) as file:
        assert len(file.metadata["tokenizer.ggml.tokens"]) == 151936
        assert time.monotonic() - start < 1.0  # about 0.1 s on an idle machine
    with GGUFFile(qwen_coder_path) as file:
        assert file.metadata["general.architecture"] == "qwen2"
