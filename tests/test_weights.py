"""From files to weight records: formats computed as stored, formats decoded, conversions, random weights."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from golden_values import tiny_cases, tiny_dir
from oracle import forward
from test_kernel_matmul import stored_rows
from tiny_gguf import tiny_config, tiny_weights, write_tiny_gguf

import yakvrt
from gguf_tools.dequantize import dequantize
from gguf_tools.formats import FORMATS
from yakvrt.config import config_from_json
from yakvrt.cpu.features import host_features
from yakvrt.kernels.tile_layout import LAYOUTS

NAME = "blk.1.ffn_down.weight"  # 256 columns: whole superblocks
RNG = np.random.default_rng(17)


def with_format(path: Path, target: Path, format_name: str) -> np.ndarray:
    """Copies a tiny GGUF with one matrix stored in another format; the values it then holds."""
    reader = GGUFReader(path)
    writer = GGUFWriter(target, "qwen2")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if tensor.name != NAME:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        rows = format_rows(format_name, *tensor.data.shape)
        writer.add_tensor(NAME, rows, raw_dtype=GGMLQuantizationType[format_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dequantize(rows, format_name)


def format_rows(format_name: str, n_rows: int, n_cols: int) -> np.ndarray:
    if format_name in LAYOUTS:
        return stored_rows(format_name, n_rows, n_cols)
    block = FORMATS[format_name]
    raw = RNG.integers(0, 256, (n_rows * n_cols // block.block_len, block.block_bytes), np.uint8)
    raw[:, :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    return raw.reshape(n_rows, -1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf("qwen2", tmp_path_factory.mktemp("weights") / "plain.gguf")


def logits_of(engine: yakvrt.Engine, ids: list[int]) -> np.ndarray:
    with engine.session() as session:
        return np.concatenate([chunk.copy() for chunk in session.all_logits(ids)])


@pytest.mark.parametrize("format_name", [*LAYOUTS, "IQ4_NL", "IQ4_XS"])
def test_every_format_reaches_the_model(plain: Path, tmp_path: Path, format_name: str) -> None:
    """The exact path equals the oracle on the decoded values; the path as stored stays near it."""
    values = with_format(plain, tmp_path / "model.gguf", format_name)
    ids = tiny_cases("qwen2")[1].ids
    weights = {**tiny_weights("qwen2"), NAME: values}
    expected = forward(config_from_json(tiny_config("qwen2")), weights, ids)
    for dtype, tolerance in (("f32", 1e-3), ("auto", 0.05 * np.abs(expected).max())):
        with yakvrt.load(str(tmp_path / "model.gguf"), dtype=dtype, cache_type="f32", ctx_size=64) as engine:
            np.testing.assert_allclose(logits_of(engine, ids), expected, rtol=0, atol=tolerance)


def test_a_codebook_format_needs_the_extra(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_format(plain, tmp_path / "model.gguf", "IQ4_NL")
    real_import = builtins.__import__

    def without_gguf(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "gguf":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    for module in [m for m in __import__("sys").modules if m.split(".")[0] == "gguf"]:
        monkeypatch.delitem(__import__("sys").modules, module)
    said: list[str] = []
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_down.*IQ4_NL.*yakvrt\[gguf\]"):
        yakvrt.load(
            str(tmp_path / "model.gguf"), ctx_size=64, progress=lambda what, done, total: said.append(what)
        )
    assert said == []  # refused before anything is compiled or loaded


def test_an_unknown_keyword_of_generate_is_named(plain: Path) -> None:
    with yakvrt.load(str(plain), ctx_size=64) as engine:
        with pytest.raises(TypeError, match=r"generate\(\) got .*'temprature'; did you mean 'temperature'"):
            engine.generate([1], temprature=0.5)
        with pytest.raises(TypeError, match=r"'zzzz'; sampling takes .*top_k"):
            engine.generate([1], zzzz=1)


# with fast products of bfloat16 a prompt's activations are bfloat16, too
BF16_ERROR = 0.05 if host_features().amx_bf16 or host_features().fast_bf16_dots else 1e-3


@pytest.mark.parametrize(("dtype", "allowed"), [("bf16", BF16_ERROR), ("q8_0", 0.12), ("q4_0", 0.9)])
@pytest.mark.parametrize("family", ["qwen3", "qwen3-moe"])
def test_conversion_at_load(family: str, dtype: str, allowed: float) -> None:
    """Relative error of the logits against the stored BF16 weights computed exactly: the median of a prompt's
    tokens, since rounding sends a few of them to another expert.
    """
    ids = tiny_cases(family)[3].ids[:40]
    found = []
    for each in ("f32", dtype):
        with yakvrt.load(str(tiny_dir(family)), dtype=each, cache_type="f32", ctx_size=64) as engine:
            found.append((logits_of(engine, ids), engine.weight_bytes))
    (exact, exact_bytes), (logits, n_bytes) = found
    error = np.linalg.norm(logits - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert np.median(error) < allowed
    assert n_bytes < 0.6 * exact_bytes


def test_dummy_weights_need_a_configuration_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_dir("llama3") / "config.json").read_bytes())
    with yakvrt.load(str(tmp_path), load_format="dummy", ctx_size=64) as engine:
        first = logits_of(engine, [1, 2, 3])
    assert np.isfinite(first).all()
    assert first.std() > 0
    with yakvrt.load(str(tmp_path), load_format="dummy", ctx_size=64) as engine:
        np.testing.assert_array_equal(logits_of(engine, [1, 2, 3]), first)


def test_quantising_matches_ggml(plain: Path) -> None:
    """What --dtype q8_0 stores is what ggml's quantiser stores."""
    values = tiny_weights("qwen2")["blk.0.ffn_up.weight"]
    from gguf_tools.quantize import quantize

    expected = quants.quantize(values, GGMLQuantizationType.Q8_0).view(np.uint8)
    np.testing.assert_array_equal(quantize(values, "Q8_0"), expected.reshape(len(values), -1))
