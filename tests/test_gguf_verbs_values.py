"""The verbs of gguf_tools that look at values: inspect-tensor and compare."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from gguf_verb import Tensors, run, save, weights
from golden_values import tiny_dir
from tiny_gguf import write_tiny_gguf

from gguf_tools.chunks import DECODED_LEN, blocks, decoded
from gguf_tools.dequantize import dequantize
from gguf_tools.formats import FORMATS
from gguf_tools.quantize import quantize
from gguf_tools.reader import GGUFFile
from gguf_tools.tensor_difference import difference

METADATA = {"general.architecture": "llama", "llama.block_count": 1}
NAN, INF = math.nan, math.inf


def model(path: Path, tensors: Tensors, **metadata: object) -> Path:
    return save(path, {**METADATA, **metadata}, tensors)


def figures(out: str) -> dict[str, str]:
    return dict(line.split(None, 1) for line in out.splitlines() if not line.startswith("["))


def test_inspect_tensor_against_numpy(tmp_path: Path) -> None:
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


def test_inspect_tensor_counts_what_is_not_finite(tmp_path: Path) -> None:
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
def test_inspect_tensor_decodes(tmp_path: Path, kind: str) -> None:
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


def test_compare_of_equal_models(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("family", ["llama3", "llama32-tied", "qwen2", "qwen3", "qwen3-moe"])
def test_compare_and_verify_with_the_hugging_face_original(tmp_path: Path, family: str) -> None:
    gguf = write_tiny_gguf(family, tmp_path / "m.gguf")
    original = tiny_dir(family)
    # Q and K in llama's row order, stacked experts and rope factors are no differences.
    code, out, _ = run("compare", gguf, original, "--tolerance", "0")
    assert code == 0, out
    assert out.endswith("; 0 findings\n")
    assert run("compare", original, gguf, "--tolerance", "0", "--quiet")[0] == 0
    code, out, _ = run("verify", gguf, "--against", original)
    assert code == 0, out


def test_forgotten_rope_order_is_found(tmp_path: Path) -> None:
    with GGUFFile(write_tiny_gguf("llama3", tmp_path / "m.gguf")) as file:
        tensors = {
            name: ("F32", decoded(blocks(t), t.format).reshape(t.shape)) for name, t in file.tensors.items()
        }
    kind, q = tensors["blk.0.attn_q.weight"]
    tensors["blk.0.attn_q.weight"] = (kind, q[::-1])
    wrong = model(tmp_path / "w.gguf", tensors)
    code, out, _ = run("verify", wrong, "--against", tiny_dir("llama3"))
    assert code == 1
    assert "error: blk.0.attn_q.weight: relative RMSE 1.4" in out
    assert "\n1 error, " in out


def test_compare_finds_what_differs(tmp_path: Path) -> None:
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
