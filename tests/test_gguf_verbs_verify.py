"""The verb verify of gguf_tools: what it finds, and what it leaves alone."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf_files import Info, assemble, model_bytes, pair, write
from gguf_verb import Tensors, run, save, weights

from gguf_tools.formats import FORMATS
from gguf_tools.reader import GGUFFile
from gguf_tools.value_checks import check_values

METADATA = {"general.architecture": "llama", "llama.block_count": 1}
NAN, INF = math.nan, math.inf


def model(path: Path, tensors: Tensors, **metadata: object) -> Path:
    return save(path, {**METADATA, **metadata}, tensors)


def test_verify_of_a_sound_file(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf", {
        "token_embd.weight": ("Q8_0", weights(7, 4, 64)), "blk.0.attn_q.weight": ("Q4_0", weights(8, 4, 64)),
        "output_norm.weight": ("F32", weights(9, 64)),
    })  # fmt: skip
    code, out, _ = run("verify", path)
    assert code == 0
    assert out.splitlines()[1:] == [
        "structure  ok: GGUF version 3, 2 metadata keys, 3 tensors, alignment 32",
        "values     ok: 576 values looked at for NaN, infinities and odd scales",
        "0 errors, 0 warnings",
    ]


STRUCTURE: dict[str, tuple[dict[str, object], str]] = {
    "no architecture": ({}, "error: general.architecture is missing"),
    "text": ({**METADATA, "general.name": b"\xff"}, "error: general.name: holds text that is not UTF-8"),
    "texts": ({**METADATA, "x": ["\ufffd", b"a\xc3"]}, "error: x: holds text that is not UTF-8"),
    "scores": (
        {**METADATA, "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [0.5]},
        "error: tokenizer.ggml.scores: 1 entries for 2 tokens",
    ),
    "token id": (
        {**METADATA, "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.eos_token_id": 1},
        "error: tokenizer.ggml.eos_token_id: 1 is not the id of one of the 1 tokens",
    ),
    "rows": ({**METADATA, "tokenizer.ggml.tokens": list("abc")}, "error: token_embd.weight: 2 rows for 3"),
    "layers": ({**METADATA, "llama.block_count": 2}, "warning: llama.block_count is 2, but there are"),
}


@pytest.mark.parametrize(("metadata", "finding"), STRUCTURE.values(), ids=STRUCTURE)
def test_verify_finds_wrong_metadata(tmp_path: Path, metadata: dict[str, object], finding: str) -> None:
    tensors = {"token_embd.weight": ("F32", weights(1, 2, 8)), "blk.0.x": ("F32", weights(2, 8))}
    code, out, _ = run("verify", write(tmp_path / "m.gguf", model_bytes(metadata, tensors)))
    assert f"  {finding}" in out
    assert code == finding.startswith("error")


def test_a_replacement_character_in_the_file_is_no_error(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf", {}, **{"tokens": ["\ufffd", "a"], "name": "\ufffd"})
    assert run("verify", path)[0] == 0


def test_verify_finds_wrong_bytes(tmp_path: Path) -> None:
    architecture = pair("general.architecture", "llama")
    flag = bytearray(pair("flag", True))
    flag[-1] = 7
    row, long = struct.pack("<4f", 1, 2, 3, 4), "n" * 64
    infos = [Info("b", (4,), 0, 64), Info(long, (4,), 0, 0)]
    data = row + bytes(15) + b"x" + bytes(32) + row + bytes(100)
    code, out, _ = run(
        "verify", write(tmp_path / "m.gguf", assemble([architecture, bytes(flag)], infos, data))
    )
    assert code == 1
    for finding in (
        "error: flag: a truth value is stored as neither 0 nor 1",
        f"warning: {long}: llama.cpp reads tensor names of up to 63 bytes only",
        "warning: 48 bytes from byte",
        "warning: 100 bytes from byte",
        "warning: the tensors' data are in another order than their descriptions",
    ):
        assert finding in out
    tight = [Info("a", (4,), 0, 0), Info("b", (4,), 0, 32)]
    path = write(tmp_path / "t.gguf", assemble([architecture], tight, row + bytes(15) + b"x" + row))
    code, out, _ = run("verify", path)
    assert code == 0
    assert "warning: the padding from byte" in out


def broken_block(kind: str, **fields: object) -> bytes:
    """Nine blocks of equal fields, the fifth with the given fields."""
    fmt = FORMATS[kind]
    blocks = np.zeros(9, fmt.block)
    for name in fmt.block.names or ():
        blocks[name] = 17
    for name, value in fields.items():
        blocks[name][4] = value
    return blocks.tobytes()


BAD_BLOCKS: dict[str, tuple[str, Mapping[str, object]]] = {
    **{f"{kind} d": (kind, {"d": NAN}) for kind, fmt in FORMATS.items() if "d" in (fmt.block.names or ())},
    **{f"{kind} x": (kind, {"x": -INF}) for kind in ("F32", "F16", "F64")},
    "BF16": ("BF16", {"x": 0x7F80}),
    "Q4_1 m": ("Q4_1", {"m": INF}),
    "Q4_K dmin": ("Q4_K", {"dmin": NAN}),
    "MXFP4": ("MXFP4", {"e": 255}),
    "NVFP4 d": ("NVFP4", {"d": [1, 1, 0xFF, 1]}),
    # Its scale is spread over the top four bits of four words: 0x7c00 is infinity.
    "IQ1_M": ("IQ1_M", {"scales": [0, 0x00, 0, 0x00, 0, 0xC0, 0, 0x70]}),
}


@pytest.mark.parametrize("case", BAD_BLOCKS)
def test_bad_blocks_of_every_type_are_found(tmp_path: Path, case: str) -> None:
    kind, fields = BAD_BLOCKS[case]
    fmt = FORMATS[kind]
    for wanted, data in ((0, broken_block(kind)), (1, broken_block(kind, **fields))):
        info = Info("t", (9 * fmt.block_len,), fmt.ggml_id, 0)
        path = write(tmp_path / "m.gguf", assemble([pair("general.architecture", "llama")], [info], data))
        with GGUFFile(path) as file:
            seen: list[int] = []
            found = list(check_values(file.tensors["t"], seen.append))
            assert sum(seen) == len(data)
            assert len(found) == wanted, found
            if found:
                place = file.tensors["t"].offset + 4 * fmt.block_bytes
                assert found[0][0]
                assert found[0][1].endswith(f"NaN or infinite, the first at byte {place}")


def test_every_type_with_scales_has_a_bad_block_above() -> None:
    integers = {"I8", "I16", "I32", "I64"}
    assert {kind for kind, _ in BAD_BLOCKS.values()} == set(FORMATS) - integers


def test_verify_warns_of_zeros_and_of_a_scale_out_of_proportion(tmp_path: Path) -> None:
    x = weights(1, 64, 32)
    x[7] *= np.float32(1e5)
    path = model(tmp_path / "m.gguf", {"z": ("Q8_0", 0 * x), "f": ("F16", 0 * x), "o": ("Q8_0", x)})
    code, out, _ = run("verify", path)
    assert code == 0
    assert "warning: z: all values are zero" in out
    assert "warning: f: all values are zero" in out
    assert "warning: o: the largest block scale" in out
    assert out.endswith("0 errors, 3 warnings\n")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_verify_against_the_original(tmp_path: Path, kind: str) -> None:
    x = weights(1, 64, 256)
    original = model(tmp_path / "o.gguf", {"t": ("F32", x)})
    good = model(tmp_path / "g.gguf", {"t": (kind, x)})
    code, out, _ = run("verify", good, "--against", original)
    assert code == 0
    assert "1 tensors compared, worst relative RMSE" in out
    assert run("verify", good, "--against", original, "--tolerance", "1e-9")[0] == (kind != "F32")
    # Rows in another order, as when the rope permutation is forgotten, are far off.
    shuffled = model(tmp_path / "s.gguf", {"t": (kind, x[::-1])})
    code, out, _ = run("verify", shuffled, "--against", original)
    assert code == 1
    assert "error: t: relative RMSE 1.4" in out
    other = model(tmp_path / "x.gguf", {"u": (kind, x)})
    assert "u: only in the file" in run("verify", other, "--against", original)[1]


def test_verify_can_leave_the_values_out(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf", {"t": ("F32", np.full((2, 2), NAN, np.float32))})
    assert run("verify", path)[0] == 1
    assert run("verify", path, "--no-values")[0] == 0


def test_real_models_are_sound(smollm2_path: Path, qwen_coder_path: Path) -> None:
    for path in (smollm2_path, qwen_coder_path):
        code, out, _ = run("verify", path)
        assert (code, out.splitlines()[-1]) == (0, "0 errors, 0 warnings")
    code, out, _ = run("compare", smollm2_path, smollm2_path)
    assert code == 0
    assert out.endswith("272 tensors compared, 272 identical; 0 findings\n")
