"""The verbs of gguf_tools that look at values: inspect-tensor, compare, verify."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_files import Info, assemble, model_bytes, pair, write

from gguf_tools.__main__ import main
from gguf_tools.chunks import DECODED_LEN, decoded
from gguf_tools.dequantize import dequantize
from gguf_tools.formats import FORMATS
from gguf_tools.quantize import quantize
from gguf_tools.reader import GGUFFile
from gguf_tools.tensor_difference import difference
from gguf_tools.value_checks import check_values

METADATA = {"general.architecture": "llama", "llama.block_count": 1}
Run = Callable[..., tuple[int, str, str]]
NAN, INF = math.nan, math.inf


def weights(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


def model(path: Path, tensors: dict[str, tuple[str, np.ndarray]], **metadata: object) -> Path:
    raw = model_bytes({**METADATA, **metadata}, tensors)
    return write(path, raw + bytes(-len(raw) % 32))


def figures(out: str) -> dict[str, str]:
    return dict(line.split(None, 1) for line in out.splitlines() if not line.startswith("["))


def test_inspect_tensor_against_numpy(run: Run, tmp_path: Path) -> None:
    # Longer than one piece, and far from zero, where naive sums lose digits.
    x = weights(1, 3, DECODED_LEN // 2) + np.float32(1000)
    path = model(tmp_path / "m.gguf", {"a": ("F32", x)})
    code, out, _ = run("inspect-tensor", path, "a", "10")
    assert code == 0
    shown = figures(out)
    exact = x.astype(np.float64)
    assert float(shown["mean"]) == pytest.approx(exact.mean(), rel=1e-7)
    assert float(shown["std"]) == pytest.approx(exact.std(), rel=1e-7)
    assert (float(shown["min"]), float(shown["max"])) == pytest.approx((exact.min(), exact.max()), rel=1e-7)
    assert shown["shape"].startswith(f"3 x {DECODED_LEN // 2} (rows x columns)")
    values = " ".join(line.split(None, 1)[1] for line in out.splitlines() if line.startswith("[")).split()
    assert [float(value) for value in values] == pytest.approx(x[0, :10].tolist(), rel=1e-7)


def test_inspect_tensor_counts_what_is_not_finite(run: Run, tmp_path: Path) -> None:
    x = np.array([[1, NAN, INF, -INF, 0, 3]], np.float32)
    path = model(tmp_path / "m.gguf", {"a": ("F32", x), "blk.0.none": ("F32", x * np.float32(NAN))})
    shown = figures(run("inspect-tensor", path, "a", "0")[1])
    assert {key: shown[key] for key in ("NaN", "inf", "zero", "mean")} == {
        "NaN": "1", "inf": "2", "zero": "1", "mean": "1.3333333",
    }  # fmt: skip
    code, out, _ = run("inspect-tensor", path, "blk.0.none", "100")
    assert code == 0
    assert "min" not in out
    assert run("inspect-tensor", path, "blk.0.non")[2].endswith("did you mean 'blk.0.none'?\n")
    assert run("inspect-tensor", path, "a", "-1")[0] == 1


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_inspect_tensor_decodes(run: Run, tmp_path: Path, kind: str) -> None:
    x = weights(2, 4, 64)
    shown = figures(run("inspect-tensor", model(tmp_path / "m.gguf", {"a": (kind, x)}), "a")[1])
    stored = dequantize(quantize(x, kind), kind).astype(np.float64)
    assert float(shown["std"]) == pytest.approx(stored.std(), rel=1e-6)
    assert shown["type"].startswith(f"{kind}, {FORMATS[kind].block_bytes} bytes")


def test_wide_types_keep_their_digits() -> None:
    big = np.array([2**53 - 1, -7], "<i8").view(np.uint8).reshape(2, 8)
    assert decoded(big, FORMATS["I64"]).tolist() == [2**53 - 1, -7]
    fine = np.array([1 + 1e-12], "<f8").view(np.uint8).reshape(1, 8)
    assert decoded(fine, FORMATS["F64"]).tolist() == [1 + 1e-12]


@pytest.mark.parametrize("kinds", [("F32", "Q8_0"), ("Q4_0", "Q8_0"), ("BF16", "F16")])
def test_difference_against_numpy(tmp_path: Path, kinds: tuple[str, str]) -> None:
    x, y = weights(3, 5, 1 << 16), weights(4, 5, 1 << 16)
    paths = [
        model(tmp_path / f"{i}.gguf", {"t": (kind, v)})
        for i, (kind, v) in enumerate(zip(kinds, (x, y), strict=True))
    ]
    seen: list[int] = []
    with GGUFFile(paths[0]) as a, GGUFFile(paths[1]) as b:
        found = difference(a.tensors["t"], b.tensors["t"], seen.append)
        assert sum(seen) == a.tensors["t"].data.nbytes
    p, q = (
        dequantize(quantize(v, kind), kind).astype(np.float64).reshape(-1)
        for kind, v in zip(kinds, (x, y), strict=True)
    )
    assert found.max_abs == np.abs(p - q).max()
    assert found.mean_abs == pytest.approx(np.abs(p - q).mean(), rel=1e-9)
    assert found.rmse == pytest.approx(np.sqrt(((p - q) ** 2).mean()), rel=1e-9)
    assert found.cosine == pytest.approx(p @ q / np.linalg.norm(p) / np.linalg.norm(q), rel=1e-9)
    assert found.n_odd == 0


def test_compare_of_equal_models(run: Run, tmp_path: Path) -> None:
    x = weights(5, 2, 32)
    a = model(tmp_path / "a.gguf", {"t": ("Q8_0", x), "u": ("F32", x * np.float32(NAN))})
    code, out, _ = run("compare", a, a, "--tolerance", "0")
    assert code == 0
    assert out.count("identical") == 3
    assert out.endswith("2 tensors compared, 2 identical; 0 findings\n")
    # The same numbers in another type are no difference either, NaN in the same place included.
    b = model(tmp_path / "b.gguf", {
        "t": ("F32", dequantize(quantize(x, "Q8_0"), "Q8_0")), "u": ("BF16", x * np.float32(NAN)),
    })  # fmt: skip
    code, out, _ = run("compare", a, b, "--tolerance", "0")
    assert code == 0
    assert "2 tensors compared, 0 identical; 0 findings" in out


def test_compare_finds_what_differs(run: Run, tmp_path: Path) -> None:
    x = weights(6, 2, 32)
    y = x.copy()
    y[1, 3] += np.float32(0.25)
    z = x.copy()
    z[0, 0] = INF
    a = model(tmp_path / "a.gguf", {"t": ("F32", x), "inf": ("F32", x), "s": ("F32", x), "a": ("F32", x)})
    b = model(tmp_path / "b.gguf", {"t": ("F32", y), "inf": ("F32", z), "s": ("F32", x.T), "b": ("F32", x)})
    code, out, _ = run("compare", a, b)
    assert code == 1
    assert "a: only in A\nb: only in B\ns: shape (2, 32) in A, (32, 2) in B\n" in out
    assert "inf  F32     F32             inf" in out
    assert "(1 NaN or infinite on one side)" in out
    assert out.endswith("2 tensors compared, 0 identical, largest |d| inf in inf; 3 findings\n")
    same = model(tmp_path / "c.gguf", {"t": ("F32", y), "inf": ("F32", x), "s": ("F32", x), "a": ("F32", x)})
    assert run("compare", a, same)[0] == 0
    assert run("compare", a, same, "--tolerance", "0.3", "--quiet")[0] == 0
    code, out, _ = run("compare", a, same, "--tolerance", "0.2", "--quiet")
    assert code == 1
    assert out.splitlines()[0] == "t: 0.25 apart, over the tolerance 0.2"


def test_verify_of_a_sound_file(run: Run, tmp_path: Path) -> None:
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
def test_verify_finds_wrong_metadata(
    run: Run, tmp_path: Path, metadata: dict[str, object], finding: str
) -> None:
    tensors = {"token_embd.weight": ("F32", weights(1, 2, 8)), "blk.0.x": ("F32", weights(2, 8))}
    code, out, _ = run("verify", write(tmp_path / "m.gguf", model_bytes(metadata, tensors)))
    assert f"  {finding}" in out
    assert code == finding.startswith("error")


def test_a_replacement_character_in_the_file_is_no_error(run: Run, tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf", {}, **{"tokens": ["\ufffd", "a"], "name": "\ufffd"})
    assert run("verify", path)[0] == 0


def test_verify_finds_wrong_bytes(run: Run, tmp_path: Path) -> None:
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


BAD_BLOCKS = {
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


def test_verify_warns_of_zeros_and_of_a_scale_out_of_proportion(run: Run, tmp_path: Path) -> None:
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
def test_verify_against_the_original(run: Run, tmp_path: Path, kind: str) -> None:
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


def test_verify_can_leave_the_values_out(run: Run, tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf", {"t": ("F32", np.full((2, 2), NAN, np.float32))})
    assert run("verify", path)[0] == 1
    assert run("verify", path, "--no-values")[0] == 0


def test_real_models_are_sound(run: Run, smollm2_path: Path, qwen_coder_path: Path) -> None:
    for path in (smollm2_path, qwen_coder_path):
        code, out, _ = run("verify", path)
        assert (code, out.splitlines()[-1]) == (0, "0 errors, 0 warnings")
    code, out, _ = run("compare", smollm2_path, smollm2_path)
    assert code == 0
    assert out.endswith("272 tensors compared, 272 identical; 0 findings\n")
