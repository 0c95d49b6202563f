"""Decoded blocks against gguf-py's reference, bit for bit."""

from __future__ import annotations

import sys
import tracemalloc

import gguf
import gguf.quants
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.dequantize import NATIVE, dequantize
from gguf_tools.dequantize_compiled import COMPILED, STREAM_FROM, compiled_decoder
from gguf_tools.formats import FORMATS, by_id

REFERENCE = sorted(NATIVE - {"F64"})


def reference(data: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name]))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if not (a.dtype == b.dtype == np.float32 and a.shape == b.shape):
        return False
    return bool(np.all(a.view(np.uint32) == b.view(np.uint32)))


def test_sizes_agree_with_gguf_py() -> None:
    for kind, (block_len, block_bytes) in gguf.constants.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":
            # gguf-py still counts the float32 scale and sum of an old layout; ggml stores two float16.
            block_bytes = 36
        fmt = FORMATS[kind.name]
        assert (fmt.ggml_id, fmt.block_len, fmt.block_bytes) == (kind.value, block_len, block_bytes)
        assert by_id(kind.value) is fmt


@pytest.mark.parametrize("ggml_id", [-1, 4, 5, 31, 36, 38, 99, 2**32 - 1])
def test_withdrawn_and_unknown_ids_are_refused(ggml_id: int) -> None:
    with pytest.raises(ValueError, match=f"type id {ggml_id} is not known"):
        by_id(ggml_id)


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("shape", [(1,), (3, 2), (2, 3, 1), (700, 1)])
def test_random_blocks(name: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    row = (*shape[:-1], shape[-1] * FORMATS[name].block_bytes)
    data = rng.integers(0, 256, row, np.uint8)
    assert same_bits(dequantize(data, name), reference(data, name))


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x7F, 0x80, 0x01, 0xAA])
def test_uniform_blocks(name: str, fill: int) -> None:
    data = np.full((2, FORMATS[name].block_bytes), fill, np.uint8)
    assert same_bits(dequantize(data, name), reference(data, name))


@pytest.mark.parametrize("name", [n for n in REFERENCE if "d" in (FORMATS[n].block.names or ())])
@pytest.mark.parametrize("scale", [0x0000, 0x8000, 0x0001, 0x03FF, 0x7BFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00])
def test_special_scales(name: str, scale: int) -> None:
    fmt = FORMATS[name]
    data = np.random.default_rng(scale).integers(0, 256, (64, fmt.block_bytes), np.uint8)
    for field in ("d", "m", "dmin"):
        if field in (fmt.block.names or ()):
            data.view(fmt.block)[field] = np.array(scale, "<u2").view("<f2")
    assert same_bits(dequantize(data, name), reference(data, name))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(REFERENCE), st.data())
def test_any_block(name: str, data: st.DataObject) -> None:
    n_bytes = FORMATS[name].block_bytes
    block = np.frombuffer(data.draw(st.binary(min_size=n_bytes, max_size=n_bytes)), np.uint8)
    assert same_bits(dequantize(block, name), reference(block, name))


def test_f64_rounds_to_float32() -> None:
    x = np.array([[1 / 3, -0.0, 1e300]])
    assert dequantize(x.view(np.uint8), "F64").tolist() == [[float(np.float32(1 / 3)), -0.0, float("inf")]]


def test_strided_rows() -> None:
    data = np.random.default_rng(0).integers(0, 256, (6, 2 * 34), np.uint8)
    assert same_bits(dequantize(data[::2], "Q8_0"), reference(np.ascontiguousarray(data[::2]), "Q8_0"))


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ4_NL", "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4"])
def test_other_types_go_through_gguf(name: str) -> None:
    data = np.random.default_rng(0).integers(0, 256, (300, 3 * FORMATS[name].block_bytes), np.uint8)
    assert same_bits(dequantize(data, name), reference(data, name))


def test_other_types_without_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"IQ4_XS needs the gguf package .* pip install 'yakvrt\[gguf\]'"):
        dequantize(np.zeros((1, FORMATS["IQ4_XS"].block_bytes), np.uint8), "IQ4_XS")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("Q9_9", np.zeros(4, np.uint8), "'Q9_9' is not known"),
        ("Q8_0", np.zeros(35, np.uint8), "multiple of 34 bytes"),
        ("Q8_0", np.zeros(34, np.int8), "not int8"),
        ("I32", np.zeros(4, np.uint8), "holds integers"),
        ("Q8_1", np.zeros(36, np.uint8), "cannot be decoded by the installed gguf"),
    ],
)
def test_refusals(name: str, data: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dequantize(data, name)


def test_temporaries_are_small() -> None:
    data = np.zeros((1024, 32 * FORMATS["Q4_K"].block_bytes), np.uint8)
    tracemalloc.start()
    out = dequantize(data, "Q4_K")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - out.nbytes < 4 << 20


@pytest.mark.parametrize("name", sorted(COMPILED))
@pytest.mark.parametrize("cpu", [None, "generic"])
def test_compiled_decoders_give_the_same_bits(name: str, cpu: str | None) -> None:
    fmt = FORMATS[name]
    decoder = compiled_decoder(name) if cpu is None else compiled_decoder(name, cpu)
    data = np.random.default_rng(3).integers(0, 256, 70_000 * 16 // fmt.block_len * fmt.block_bytes, np.uint8)
    expected = dequantize(data, name)
    # Both loops, whatever the size of the result asks for.
    for loop in (decoder.near, decoder.streaming):
        aligned = np.zeros(expected.size + 16, np.float32)
        start = -aligned.ctypes.data % 64 // 4
        out = aligned[start : start + expected.size]
        loop(data.ctypes.data, out.ctypes.data, expected.size // decoder.unit_len)
        assert same_bits(out, expected)
        assert not aligned[start + expected.size :].any()


def test_compiled_float16_takes_every_number() -> None:
    every = np.arange(1 << 16, dtype="<u2").view(np.uint8)
    assert same_bits(dequantize(every, "F16", compiled=True), dequantize(every, "F16"))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_K", "IQ4_NL"])
@pytest.mark.parametrize("n_blocks", [0, 1, 15, 16, 17, 33])
def test_compiled_leaves_no_remainder(name: str, n_blocks: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, (3, n_blocks * FORMATS[name].block_bytes), np.uint8)
    assert same_bits(dequantize(data, name, compiled=True), dequantize(data, name))


@pytest.mark.parametrize("offset", [0, 1])
def test_into_a_given_array(offset: int) -> None:
    n_values = STREAM_FROM // 4 + 64
    data = np.random.default_rng(0).integers(0, 256, (2, n_values // 64 * 34), np.uint8)
    room = np.zeros(n_values + 1, np.float32)
    out = room[offset : offset + n_values].reshape(2, -1)  # one of the two is no multiple of 16 bytes
    assert dequantize(data, "Q8_0", out=out, compiled=True) is out
    assert same_bits(out, dequantize(data, "Q8_0"))


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 32), np.float64),
        np.empty((1, 64), np.float32),
        np.empty((32, 2), np.float32).T,
        np.broadcast_to(np.float32(0), (2, 32)),
    ],
)
def test_arrays_that_cannot_take_the_result(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"a float32 array of shape \(2, 32\); `out` must be one"):
        dequantize(np.zeros((2, 34), np.uint8), "Q8_0", out=out)


def test_works_without_llvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    data = np.random.default_rng(0).integers(0, 256, (2, 34), np.uint8)
    assert same_bits(dequantize(data, "Q8_0", compiled=True), reference(data, "Q8_0"))
