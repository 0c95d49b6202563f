"""The verb `quantize`: types and sizes written, metadata kept, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_files import model_bytes, write
from golden_values import tiny_cases
from tiny_gguf import write_tiny_gguf

import yakvrt
from gguf_tools.dequantize import dequantize
from gguf_tools.formats import FORMATS
from gguf_tools.quantize import quantize
from gguf_tools.quantize_file import main
from gguf_tools.quantize_stream import encoded, encoding_workers
from gguf_tools.reader import GGUFFile

RNG = np.random.default_rng(11)
EMBEDDING = RNG.standard_normal((300, 256)).astype(np.float32)
METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "general.file_type": 1,
    "odd": [1.5, 2.5],
    "split.count": 0,
    "text": b"not UTF-8: \xff",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tensors = {
        "token_embd.weight": ("F16", EMBEDDING),
        "output_norm.weight": ("F32", np.ones(256, np.float32)),
        "blk.0.attn_v.weight": ("F32", RNG.standard_normal((64, 256)).astype(np.float32)),
        "blk.0.ffn_gate_inp.weight": ("F32", RNG.standard_normal((4, 256)).astype(np.float32)),
        "output.weight": ("BF16", EMBEDDING),
    }
    return write(tmp_path / "in.gguf", model_bytes(METADATA, tensors))


def test_types_values_and_metadata(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.gguf"
    assert main([str(source), str(output), "Q4_K_M", "2"]) == 0
    assert "2 Q6_K" in capsys.readouterr().out
    with GGUFFile(source) as was, GGUFFile(output) as now:
        kinds = [tensor.format.name for tensor in now.tensors.values()]
        assert kinds == ["Q4_K", "F32", "Q6_K", "F32", "Q6_K"]
        x = dequantize(was.tensors["token_embd.weight"].data, "F16")
        assert np.array_equal(now.tensors["token_embd.weight"].data, quantize(x, "Q4_K"))
        changed = {"general.file_type": 15, "general.quantization_version": 2}
        assert {key: now.metadata[key] for key in changed} == changed
        kept = [key for key in METADATA if key not in changed and not key.startswith("split.")]
        assert [key for key in now.metadata if key not in changed] == kept
        for key in kept:
            assert now.metadata.stored(key) == was.metadata.stored(key)


def test_flags(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    flags = [
        "--output-tensor-type",
        "q8_0",
        "--token-embedding-type",
        "Q5_0",
        "--tensor-type",
        r"attn_.\.weight=q3_k",
    ]
    assert main([*flags, str(source), str(output), "q4_0"]) == 0
    with GGUFFile(output) as file:
        kinds = [tensor.format.name for tensor in file.tensors.values()]
    assert kinds == ["Q5_0", "F32", "Q3_K", "F32", "Q8_0"]
    assert main(["--leave-output-tensor", "--pure", "--force", str(source), str(output), "Q6_K"]) == 0
    with GGUFFile(output) as file:
        kinds = [tensor.format.name for tensor in file.tensors.values()]
    assert kinds == ["Q6_K", "F32", "Q6_K", "F32", "BF16"]


def test_copy_and_default_output(source: Path) -> None:
    assert main([str(source), "COPY"]) == 0
    with GGUFFile(source) as was, GGUFFile(source.with_name("ggml-model-COPY.gguf")) as now:
        assert now.metadata["general.file_type"] == 1
        for name, tensor in was.tensors.items():
            assert np.array_equal(now.tensors[name].data, tensor.data)


def test_dry_run(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", str(source), str(tmp_path / "out.gguf"), "Q8_0"]) == 0
    shown = capsys.readouterr().out
    assert "F16 -> Q8_0" in shown
    assert "of tensors became" in shown
    assert not (tmp_path / "out.gguf").exists()


def test_quantised_input_needs_consent(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    assert main([str(source), str(first), "Q8_0"]) == 0
    assert main([str(first), str(second), "Q4_0"]) == 1
    assert "quantised already (Q8_0)" in capsys.readouterr().err
    assert not second.exists()
    assert main(["--allow-requantize", str(first), str(second), "F16"]) == 0
    with GGUFFile(second) as file:
        assert file.tensors["token_embd.weight"].format.name == "F16"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["IN", "OUT", "Q9_K"], 2, "'Q9_K' is not known"),
        (["IN", "OUT"], 2, "is no type"),
        (["IN"], 2, "1 words given"),
        (["IN", "OUT", "Q8_0", "0"], 2, "'0' is not a number of threads"),
        (["IN", "IN", "Q8_0"], 2, "exists"),
        (["--force", "IN", "IN", "Q8_0"], 2, "is the input too"),
        (["--tensor-type", "(=Q8_0", "IN", "OUT", "Q8_0"], 2, "not a regular expression"),
        (["--tensor-type", "x=Q7", "IN", "OUT", "Q8_0"], 2, "'Q7' is no type"),
        (["missing.gguf", "OUT", "Q8_0"], 1, "missing.gguf"),
    ],
)
def test_refusals(
    words: list[str], code: int, message: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"IN": str(source), "OUT": str(source.with_name("out.gguf"))}
    assert main([paths.get(word, word) for word in words]) == code
    assert message in capsys.readouterr().err
    assert not source.with_name("out.gguf").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "F16"])
def test_bad_values_leave_no_file(
    value: float, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if value == 1e5 and kind != "F16":
        value = np.float32(3e38)
    x = np.ones((4, 256), np.float32)
    x[2, 7] = value
    source = write(
        tmp_path / "in.gguf", model_bytes({"general.architecture": "llama"}, {"a.weight": ("F32", x)})
    )
    assert main([str(source), str(tmp_path / "out.gguf"), "--pure", kind]) == 1
    assert capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_a_model_still_computes(tmp_path: Path) -> None:
    source, output = write_tiny_gguf("llama3", tmp_path / "f32.gguf"), tmp_path / "q8.gguf"
    assert main([str(source), str(output), "Q8_0"]) == 0
    case = tiny_cases("llama3")[1]
    with yakvrt.load(str(output), dtype="f32", cache_type="f32") as engine, engine.session() as session:
        logits = session.prefill(case.ids)
    assert np.corrcoef(logits, case.logits[-1])[0, 1] > 0.999


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, 65504.0, -65504.0, -0.0])
def test_the_same_type_is_copied_and_still_checked(kind: str, value: float) -> None:
    x = np.zeros(1 << 21, np.float32)
    x[-3] = value
    stored = quantize(x, kind)
    with encoding_workers(2, [(FORMATS[kind], FORMATS[kind], x.size)]) as workers:
        pieces = encoded("w", stored, FORMATS[kind], kind, workers)
        if np.isfinite(value):
            assert np.array_equal(np.concatenate(list(pieces)).reshape(-1), stored)
        else:
            with pytest.raises(ValueError, match="'w' holds NaN or infinite values"):
                list(pieces)
