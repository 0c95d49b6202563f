"""The K types: error bounds, llama.cpp's own error where it is installed, and equal bytes with Numba."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.dequantize import dequantize
from gguf_tools.formats import FORMATS
from gguf_tools.quantize import quantize

NAMES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
# Root mean square error on normal values of variance 1: that of llama.cpp's quantisers without weights.
LLAMA_ERROR = {"Q2_K": 0.2973, "Q3_K": 0.1511, "Q4_K": 0.07155, "Q5_K": 0.03622, "Q6_K": 0.01778}


def rmse(x: np.ndarray, data: np.ndarray, name: str) -> float:
    return float(np.sqrt(np.mean((dequantize(data, name).astype(np.float64) - x) ** 2)))


def rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    normal = rng.standard_normal((32, 512))
    shapes = {
        "normal": normal,
        "heavy tails": rng.standard_t(3, (32, 512)) * 0.02,
        "uniform": rng.uniform(-1, 1, (32, 512)),
        "one outlier": np.where(np.arange(512) % 256 == 7, 5.0, normal * 0.01),
        "all above zero": np.abs(normal) + 1,
        "all below zero": -np.abs(normal) - 1,
        "sparse": normal * (rng.random((32, 512)) < 0.05),
        "small": normal * 1e-5,
        "float16's smallest": normal * 1e-7,
        "huge": normal * 1e4,
        "constant": np.full((2, 256), 0.37),
        "zeros": np.zeros((2, 256)),
        "denormal": np.full((2, 256), 1e-44),
        "ramp": np.tile(np.arange(256.0) - 100, (2, 1)),
        "two values": rng.choice([-1.0, 1.0], (8, 256)),
    }
    return {name: x.astype(np.float32) for name, x in shapes.items()}


@pytest.mark.parametrize("name", NAMES)
def test_error_is_below_llamacpps(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    assert rmse(x, quantize(x, name), name) < LLAMA_ERROR[name]


@pytest.mark.parametrize("name", NAMES)
def test_compiled_search_gives_the_same_bytes(name: str) -> None:
    for label, x in rows().items():
        assert np.array_equal(quantize(x, name, compiled=True), quantize(x, name, compiled=False)), label


@pytest.mark.parametrize("name", NAMES)
def test_blocks_do_not_depend_on_their_neighbours(name: str) -> None:
    x = rows()["heavy tails"]
    whole = quantize(x, name)
    assert np.array_equal(whole[3], quantize(x[3], name))
    assert np.array_equal(whole[:, FORMATS[name].block_bytes :], quantize(x[:, 256:], name))


@pytest.mark.parametrize("name", NAMES)
def test_extremes(name: str) -> None:
    assert not dequantize(quantize(rows()["zeros"], name), name).any()
    for label in ("constant", "two values"):
        x = rows()[label]
        # Only the float16 factors and the grid of integer scales are left to round.
        assert rmse(x, quantize(x, name), name) <= 2e-3 * np.abs(x).max(), label


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e9])
@pytest.mark.parametrize("name", NAMES)
def test_values_without_a_block_are_refused(name: str, value: float) -> None:
    x = np.ones((2, 512), np.float32)
    x[1, 400] = value
    with pytest.raises(ValueError, match=f"which {name} cannot store"):
        quantize(x, name)


@pytest.mark.parametrize("name", NAMES)
def test_no_worse_than_llamacpp(name: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="compares with llama.cpp's own quantisers")
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    encode = library.ggml_quantize_chunk
    encode.restype = ctypes.c_size_t
    encode.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    fmt = FORMATS[name]
    for label, x in rows().items():
        theirs = np.empty((len(x), fmt.row_bytes(x.shape[1])), np.uint8)
        encode(fmt.ggml_id, x.ctypes.data, theirs.ctypes.data, 0, *x.shape, None)
        # The ramp is where a weighted search may win by a thousandth.
        limit = 1.002 if label == "ramp" else 1 + 1e-6
        assert rmse(x, quantize(x, name), name) <= limit * rmse(x, theirs, name), label
