"""Encoded rows against gguf-py's reference, and round trips."""

from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import pytest

from gguf_tools.dequantize import dequantize
from gguf_tools.formats import FORMATS
from gguf_tools.quantize import quantize

NAMES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


def reference(x: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.quantize(x, gguf.GGMLQuantizationType[name]).view(np.uint8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 3e4])
@pytest.mark.parametrize("shape", [(32,), (3, 64), (2, 5, 96), (700, 256)])
def test_same_bytes_as_reference(name: str, scale: float, shape: tuple[int, ...]) -> None:
    x = (np.random.default_rng(7).standard_normal(shape) * scale).astype(np.float32)
    got = quantize(x, name)
    assert got.dtype == np.uint8
    assert got.shape == (*shape[:-1], FORMATS[name].row_bytes(shape[-1]))
    assert np.array_equal(got, reference(x, name))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_ties_and_edges_as_reference(name: str) -> None:
    halves = np.arange(-127, 129, dtype=np.float32) / 2
    rows = [np.resize(halves[i:], 32) for i in range(0, 256, 16)]
    rows += [np.zeros(32), -np.zeros(32), np.full(32, 5.0), np.eye(32)[3] * -2.0, np.eye(32)[0]]
    # The largest value sets the scale to 1, so the rest meet every tie exactly.
    for row in rows[:16]:
        row[0] = 127.0 if name == "Q8_0" else -8.0
    x = np.array(rows, np.float32)
    assert np.array_equal(quantize(x, name), reference(x, name))


def test_bf16_special_values() -> None:
    bits = [0x7F800001, 0xFF800001, 0x7FFFFFFF, 0x7F7FFFFF, 0x3F808000, 0x3F818000, 0x80000001, 0x7F800000]
    x = np.array(bits, np.uint32).view(np.float32)
    stored = quantize(x, "BF16").view(np.uint16)
    assert np.array_equal(stored, reference(x, "BF16").view(np.uint16))
    assert [hex(v) for v in stored] == [
        *("0x7fc0", "0xffc0", "0x7fff", "0x7f80"),
        *("0x3f80", "0x3f82", "0x8000", "0x7f80"),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_stable(name: str) -> None:
    x = np.random.default_rng(3).standard_normal((16, 512)).astype(np.float32)
    decoded = dequantize(quantize(x, name), name)
    step = {"F32": 0.0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 0.03, "Q4_0": 0.6}[name]
    assert np.max(np.abs(decoded - x)) <= step
    assert np.array_equal(dequantize(quantize(decoded, name), name), decoded)


def test_other_float_types_and_strides() -> None:
    x = np.random.default_rng(3).standard_normal((64, 8))
    assert np.array_equal(quantize(x.T, "Q8_0"), quantize(np.ascontiguousarray(x.T, np.float32), "Q8_0"))


def test_tiny_blocks_become_zero() -> None:
    x = np.full((1, 32), 1e-44, np.float32)
    for name in ("Q8_0", "Q4_0"):
        assert not dequantize(quantize(x, name), name).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_values_without_a_block_are_refused(name: str, value: float) -> None:
    x = np.ones((2, 64), np.float32)
    x[1, 40] = value
    with pytest.raises(ValueError, match=f"which {name} cannot store"):
        quantize(x, name)


@pytest.mark.parametrize(
    ("x", "name", "message"),
    [
        (np.zeros((2, 33)), "Q8_0", "33 values is not a whole number of Q8_0 blocks of 32"),
        (np.zeros((2, 32)), "IQ4_NL", "'IQ4_NL' cannot be written"),
        (np.zeros(()), "F32", "single number"),
    ],
)
def test_refusals(x: np.ndarray, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(x, name)
