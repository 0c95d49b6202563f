"""Malformed and hostile safetensors files: one short sentence comes out, quickly and in little memory."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden_values import tiny_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_files import Header, split_header, tiny_copy, with_header

from yakvrt.model_files import HubError
from yakvrt.model_source import open_model
from yakvrt.weights import check_tensors

GOOD = (tiny_dir("qwen3") / "model.safetensors").read_bytes()
HEADER, DATA = split_header(GOOD)
HEADER_BYTES = 8 + struct.unpack_from("<Q", GOOD)[0]
NAME = "model.layers.0.self_attn.q_proj.weight"
FIRST, LAST = HEADER[NAME]["data_offsets"]
BUDGET = 6.0  # seconds


def edited(**fields: Any) -> bytes:
    """The file with other fields in the entry of one tensor."""
    return with_header(HEADER | {NAME: HEADER[NAME] | fields}, DATA)


def without(name: str) -> bytes:
    """The file without one tensor, its data closed up."""
    start, end = HEADER[name]["data_offsets"]
    header: Header = {}
    for key, entry in HEADER.items():
        if key == "__metadata__" or key == name:
            continue
        a, b = entry["data_offsets"]
        shift = end - start if a >= end else 0
        header[key] = entry | {"data_offsets": [a - shift, b - shift]}
    return with_header(header, DATA[:start] + DATA[end:])


def added(name: str, shape: list[int], dtype: str, size: int) -> bytes:
    """The file with one more tensor."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [len(DATA), len(DATA) + size]}
    return with_header(HEADER | {name: entry}, DATA + bytes(size))


def twice() -> bytes:
    text = json.dumps(HEADER)
    return with_header(f"{text[:-1]}, {json.dumps({NAME: HEADER[NAME]})[1:]}".encode(), DATA)


LAYER = "model.layers.0."
CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a valid safetensors file"),
    "seven bytes": (bytes(7), "not a valid safetensors file"),
    "header length 0": (bytes(8), "not a valid safetensors file"),
    "header length 2^60": (struct.pack("<Q", 1 << 60) + GOOD[8:], f"header has {1 << 60} bytes"),
    "header length 2^64-1": (b"\xff" * 8 + GOOD[8:], "at most 33554432 are read"),
    "header past the end": (struct.pack("<Q", len(GOOD)) + GOOD[8:], "not a valid safetensors file"),
    "truncated header": (GOOD[:500], "not a valid safetensors file"),
    "truncated data": (GOOD[:-100], "not a valid safetensors file"),
    "bytes after the end": (GOOD + b"x" * 64, "not a valid safetensors file"),
    "header no JSON": (with_header(b"\xff" * 64, DATA), "not a valid safetensors file"),
    "header a list": (with_header(b"[]", b""), "not a valid safetensors file"),
    "header deeply nested": (with_header(b"[" * 1_000_000, DATA), "nested too deeply"),
    "no tensors": (with_header({}, b""), "has no tensor token_embd.weight"),
    "metadata nested": (with_header(HEADER | {"__metadata__": {"a": {}}}, DATA), "not a valid safetensors"),
    "offset past the end": (edited(data_offsets=[FIRST, 1 << 60]), "not a valid safetensors file"),
    "offset negative": (edited(data_offsets=[-1, LAST]), "not a valid safetensors file"),
    "offsets reversed": (edited(data_offsets=[LAST, FIRST]), "not a valid safetensors file"),
    "offsets beyond 64 bits": (edited(data_offsets=[1 << 63, 1 << 65]), "not a valid safetensors file"),
    "overlap": (edited(data_offsets=[0, LAST - FIRST]), "not a valid safetensors file"),
    "shape product 2^80": (edited(shape=[1 << 40, 1 << 40]), "not a valid safetensors file"),
    "shape text": (edited(shape="x"), "not a valid safetensors file"),
    "shape swapped": (edited(shape=[128, 256]), "has shape (128, 256), the configuration needs (256, 128)"),
    "shape flat": (edited(shape=[32768]), "has shape (32768,), the configuration needs (256, 128)"),
    "thousand dimensions": (edited(shape=[1] * 1000 + [256, 128]), "has 1002 dimensions"),
    "scalar": (added(LAYER + "self_attn.q_proj.bias", [], "BF16", 2), "has 0 dimensions"),
    "empty shape": (added(LAYER + "self_attn.q_proj.bias", [0], "BF16", 0), "or an empty one"),
    "type unknown": (edited(dtype="Q4"), "not a valid safetensors file"),
    "type too wide": (edited(dtype="F64"), "not a valid safetensors file"),
    "type whole numbers": (edited(dtype="I16"), "has type I16; yakvrt reads F32, F16 and BF16"),
    "name twice": (twice(), "occurs twice in its header"),
    "missing matrix": (without(NAME), "has no tensor blk.0.attn_q.weight; it is incomplete"),
    "missing norm": (without("model.norm.weight"), "has no tensor output_norm.weight"),
    "missing embedding": (without("model.embed_tokens.weight"), "has no tensor token_embd.weight"),
    "far expert": (added(LAYER + "mlp.experts.99999.up_proj.weight", [1, 1], "BF16", 2), "lacks 99999"),
    "bias of an unknown place": (added(LAYER + "self_attn.o_proj.bias", [1], "BF16", 2), "attention output"),
}


def refusal(model: Path) -> str | None:
    """The sentence that refuses a model, None when it is usable; everything but a sentence gets through."""
    try:
        with open_model(str(model), offline=True) as source:
            check_tensors(source.config, source.tensors)
            source.rope_factors()
            for tensor in source.tensors.values():
                assert tensor.read().nbytes > 0
    except (ValueError, HubError, OSError) as error:
        text = str(error)
        assert "\n" not in text
        assert 10 < len(text) < 1000
        return text
    return None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_copy("qwen3", tmp_path_factory.mktemp("hostile") / "model")


@pytest.mark.parametrize("case", CASES)
def test_refused(model: Path, case: str) -> None:
    content, message = CASES[case]
    (model / "model.safetensors").write_bytes(content)
    started = time.monotonic()
    assert message in (refusal(model) or "accepted")
    assert time.monotonic() - started < 2


def test_names_nobody_needs_do_no_harm(model: Path) -> None:
    for name in ("x" * 100_000, LAYER + "mlp.experts." + "9" * 5000 + ".up_proj.weight", LAYER + "\n.weight"):
        (model / "model.safetensors").write_bytes(added(name, [1], "I16", 2))
        assert refusal(model) is None


def test_shards(tmp_path: Path) -> None:
    model = tiny_copy("qwen3-moe", tmp_path / "moe")
    assert refusal(model) is None
    first, second = sorted(model.glob("*.safetensors"))
    whole = second.read_bytes()
    second.write_bytes(first.read_bytes())
    assert "occurs twice" in (refusal(model) or "")
    second.unlink()
    assert "lacks model-00002-of-00002.safetensors" in (refusal(model) or "")
    header, data = split_header(whole)
    expert = next(name for name in header if ".experts.1.up_proj" in name)
    header[expert.replace(".experts.1.", ".experts.4000.")] = header.pop(expert)
    second.write_bytes(with_header(header, data))
    assert "of its experts; fetch the model again" in (refusal(model) or "")


def test_index_of_shards(tmp_path: Path) -> None:
    model = tiny_copy("qwen3-moe", tmp_path / "moe")
    index = model / "model.safetensors.index.json"
    for content, message in (
        ("{", "no valid safetensors index"),
        ("[]", "no valid safetensors index"),
        ('{"weight_map": {"a": "../../etc/passwd"}}', "outside its directory"),
        ('{"weight_map": {"a": 5}}', "names the shard 5"),
        ('{"weight_map": {}}', "names 0 shards"),
        ("[" * 100_000, "no valid safetensors index"),
    ):
        index.write_text(content)
        assert message in (refusal(model) or "accepted")


def fuzz(model: Path, file: str, original: bytes, limit: int) -> Callable[[], None]:
    """A property: whatever is overwritten, inserted or deleted, a sentence or nothing comes."""
    deadline = time.monotonic() + BUDGET

    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(st.integers(0, limit), st.binary(max_size=8), st.integers(0, 8)), min_size=1))
    def check(edits: list[tuple[int, bytes, int]]) -> None:
        if time.monotonic() > deadline:
            return
        content = bytearray(original)
        for at, new, n_old in edits:
            content[at : at + n_old] = new
        (model / file).write_bytes(content)
        refusal(model)

    return check


def test_drawn_mutations_of_the_header(tmp_path: Path) -> None:
    fuzz(tiny_copy("qwen3", tmp_path / "m"), "model.safetensors", GOOD, HEADER_BYTES)()


def test_drawn_mutations_of_the_configuration(tmp_path: Path) -> None:
    original = (tiny_dir("qwen3") / "config.json").read_bytes()
    fuzz(tiny_copy("qwen3", tmp_path / "m"), "config.json", original, len(original))()


KEYS = st.sampled_from(sorted(json.loads((tiny_dir("qwen3") / "config.json").read_text())))
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, 1, 2, 3, 16, 2**31, 10**400])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def test_drawn_values_in_the_configurations(tmp_path: Path) -> None:
    model = tiny_copy("qwen3", tmp_path / "m")
    files = [model / "config.json", model / "generation_config.json"]
    originals = [json.loads(path.read_text()) for path in files]
    deadline = time.monotonic() + BUDGET
    generation_keys = st.sampled_from(
        ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "eos_token_id"]
    )

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.dictionaries(KEYS, VALUES, max_size=3), st.dictionaries(generation_keys, VALUES, max_size=2))
    def check(config: dict[str, Any], generation: dict[str, Any]) -> None:
        if time.monotonic() > deadline:
            return
        for path, original, drawn in zip(files, originals, (config, generation), strict=True):
            path.write_text(json.dumps(original | drawn))
        refusal(model)

    check()
