"""Packing, repacking, matmul (plain and gated) and embedding of every weight format against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from kernel_team import KernelTeam, count, poisoned

from gguf_tools.dequantize import dequantize
from yakvrt.cpu.memory import aligned, padded
from yakvrt.cpu.tiled_matrix import TiledMatrix, tiled_bytes
from yakvrt.kernels.embed import embed_ref
from yakvrt.kernels.matmul import ADD, GATE, WRITE, matmul_ref
from yakvrt.kernels.pack_activations import CODE_BYTES, quantize_activations_ref
from yakvrt.kernels.swiglu import swiglu_ref
from yakvrt.kernels.tile_layout import LAYOUTS, ROWS

RNG = np.random.default_rng(11)
FORMATS = list(LAYOUTS)
SHAPES = [(1, 256), (33, 512), (96, 768)]


def stored_rows(format_name: str, n_rows: int, n_cols: int) -> np.ndarray:
    """GGUF rows holding random codes with sane scales."""
    values = (RNG.standard_normal((n_rows, n_cols)) * 0.1).astype(np.float32)
    kind = GGMLQuantizationType[format_name]
    try:
        return quants.quantize(values, kind).view(np.uint8).reshape(n_rows, -1)
    except NotImplementedError:
        return random_blocks(format_name, n_rows, n_cols)


def random_blocks(format_name: str, n_rows: int, n_cols: int) -> np.ndarray:
    """Blocks of random bytes whose float16 scales are small numbers."""
    from gguf_tools.formats import FORMATS as STORED

    block = STORED[format_name]
    n_blocks = n_rows * n_cols // block.block_len
    raw = RNG.integers(0, 256, (n_blocks, block.block_bytes), np.uint8)
    records = raw.view(block.block)
    for name in ("d", "dmin"):
        if name in block.block.names:
            records[name] = (RNG.standard_normal(records[name].shape) * 0.01).astype(np.float16)
    return raw.reshape(n_rows, -1)


def tile(team: KernelTeam, format_name: str, rows: np.ndarray, n_cols: int) -> TiledMatrix:
    """Repacks by the kernel."""
    n_rows = len(rows)
    matrix = TiledMatrix(format_name, n_rows, n_cols, 1, aligned(tiled_bytes(format_name, n_rows, n_cols)))
    matrix.tiles[:] = 0xAA
    index = np.full(matrix.n_tiles * ROWS, -1, np.int64)
    index[:n_rows] = np.arange(n_rows)
    bad = np.zeros(1, np.int64)
    arguments = (matrix.tiles, rows, index, matrix.n_tiles, n_cols, bad, *[0] * 32)
    team.run("repack", "repack_cpu", (format_name,), *arguments)
    assert bad[0] == 0
    return matrix


def pack(
    team: KernelTeam, x: np.ndarray, n_tokens: int, form: str, index: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    n_cols = x.shape[1]
    n_rows = len(x) if index is None else len(index)
    places = padded(n_rows, n_tokens)
    codes = aligned(places * n_cols * CODE_BYTES[form])
    scales = poisoned(places * n_cols // 32 * 4)
    arguments = (codes, scales, x, x.strides[0], n_cols, count(n_rows), index)
    team.run("pack_activations", "pack_activations_cpu", (n_tokens, form), *arguments)
    return codes, scales


def expected_product(format_name: str, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What the kernel must compute: exact weights times activations rounded to int8 where the format has int
    codes.
    """
    if not LAYOUTS[format_name].is_float:
        codes, scales = quantize_activations_ref(x)
        x = codes.astype(np.float64) * np.repeat(scales.astype(np.float64), 32, axis=1)
    return matmul_ref(dequantize(rows, format_name), x)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize(("n_rows", "n_cols"), SHAPES)
@pytest.mark.parametrize("n_tokens", [1, 6, 8])
def test_matmul(team: KernelTeam, format_name: str, n_rows: int, n_cols: int, n_tokens: int) -> None:
    rows = stored_rows(format_name, n_rows, n_cols)
    matrix = tile(team, format_name, rows, n_cols)
    batch = 1 if n_tokens == 1 else n_tokens + 1
    x = RNG.standard_normal((batch, n_cols)).astype(np.float32)
    codes, scales = pack(team, x, n_tokens, "f32" if LAYOUTS[format_name].is_float else "int8")
    out = poisoned(padded(batch, n_tokens), padded(n_rows, 32))
    bias = np.zeros(out.shape[1], np.float32)
    bias[:n_rows] = RNG.standard_normal(n_rows)
    for use_bias, mode in ((False, WRITE), (True, WRITE), (True, ADD)):
        before = out.copy()
        arguments = (out, out.strides[0], matrix.tiles, matrix.n_tiles, n_cols, codes, scales, count(batch))
        team.run(
            "matmul",
            "matmul_cpu",
            (format_name, n_tokens),
            *arguments,
            bias if use_bias else None,
            mode,
            None,
        )
        expected = expected_product(format_name, rows, x)
        expected = (
            expected + (bias[:n_rows] if use_bias else 0) + (before[:batch, :n_rows] if mode == ADD else 0)
        )
        scale = matmul_ref(np.abs(dequantize(rows, format_name)), np.abs(x)).max() + 1
        np.testing.assert_allclose(out[:batch, :n_rows] / scale, expected / scale, rtol=0, atol=2e-6)


def gates(n_rows: int, width: int) -> np.ndarray:
    """Numbers of silu's whole range, its ends included, in an aligned array."""
    values = poisoned(n_rows, width)
    values[:] = RNG.standard_normal(values.shape) * 8
    values[0, :5] = [-200, 200, 0, -0.0, np.nan]
    return values


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize(("n_tokens", "batch"), [(1, 1), (2, 2), (4, 3), (6, 13), (8, 9)])
def test_matmul_gated(team: KernelTeam, format_name: str, n_tokens: int, batch: int) -> None:
    """Against the product that the kernel writes, whose own truth test_matmul has."""
    n_rows, n_cols = 96, 512
    matrix = tile(team, format_name, stored_rows(format_name, n_rows, n_cols), n_cols)
    x = RNG.standard_normal((batch, n_cols)).astype(np.float32)
    codes, scales = pack(team, x, n_tokens, "f32" if LAYOUTS[format_name].is_float else "int8")
    gate = gates(padded(batch, n_tokens), n_rows)
    for bias in (None, RNG.standard_normal(n_rows).astype(np.float32)):
        product, out = poisoned(*gate.shape), gate.copy()
        for target, mode in ((product, WRITE), (out, GATE)):
            shape = (target, target.strides[0], matrix.tiles, matrix.n_tiles, n_cols, codes, scales)
            team.run("matmul", "matmul_cpu", (format_name, n_tokens), *shape, count(batch), bias, mode, None)
        expected = swiglu_ref(gate, product)[:batch]
        assert np.isnan(expected).sum() == 1
        np.testing.assert_allclose(out[:batch], expected, rtol=2e-6, atol=1e-6)


def test_gated_sums_are_the_same_in_every_pack(team: KernelTeam) -> None:
    """A token's numbers do not depend on how many decode beside it."""
    n_rows, n_cols = 64, 256
    matrix = tile(team, "Q4_K", stored_rows("Q4_K", n_rows, n_cols), n_cols)
    x = RNG.standard_normal((8, n_cols)).astype(np.float32)
    gate = gates(8, n_rows)
    results = []
    for n_tokens in (1, 2, 4, 8):
        codes, scales = pack(team, x, n_tokens, "int8")
        out = gate.copy()
        shape = (out, out.strides[0], matrix.tiles, matrix.n_tiles, n_cols, codes, scales, count(8))
        team.run("matmul", "matmul_cpu", ("Q4_K", n_tokens), *shape, None, GATE, None)
        results.append(out)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("n_tokens", [1, 2, 4, 6])
def test_matmul_by_experts(team: KernelTeam, n_tokens: int) -> None:
    n_experts, n_rows, n_cols = 5, 64, 128
    stacked = [stored_rows("Q8_0", n_rows, n_cols) for _ in range(n_experts)]
    tiles = np.concatenate([tile(team, "Q8_0", rows, n_cols).tiles for rows in stacked])
    experts = np.array([3, 0, 3])
    x = RNG.standard_normal((3 * n_tokens, n_cols)).astype(np.float32)
    codes, scales = pack(team, x, n_tokens, "int8")
    out = poisoned(3 * n_tokens, n_rows)
    arguments = (out, out.strides[0], tiles, n_rows // ROWS, n_cols, codes, scales, count(3 * n_tokens))
    team.run("matmul", "matmul_cpu", ("Q8_0", n_tokens), *arguments, None, 0, experts)
    for i, expert in enumerate(experts):
        part = slice(i * n_tokens, (i + 1) * n_tokens)
        np.testing.assert_allclose(out[part], expected_product("Q8_0", stacked[expert], x[part]), atol=3e-4)


@pytest.mark.parametrize("format_name", FORMATS)
def test_embed_reads_the_stored_values(team: KernelTeam, format_name: str) -> None:
    n_rows, n_cols = 37, 512
    rows = stored_rows(format_name, n_rows, n_cols)
    matrix = tile(team, format_name, rows, n_cols)
    tokens = np.array([0, 36, 15, 16, 0])
    out = poisoned(6, n_cols)
    arguments = (out, out.strides[0], matrix.tiles, n_cols, tokens, count(5))
    team.run("embed", "embed_cpu", (format_name,), *arguments)
    expected = embed_ref(dequantize(rows, format_name), tokens)
    np.testing.assert_allclose(out[:5], expected, rtol=2e-6, atol=1e-7)
    assert np.isnan(out[5]).all()


@pytest.mark.parametrize("n_tokens", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("batch", [1, 5, 6, 13])
def test_pack_activations(team: KernelTeam, n_tokens: int, batch: int) -> None:
    n_cols = 96
    x = RNG.standard_normal((batch, n_cols)).astype(np.float32)
    x[0, :32] = 0
    codes, scales = pack(team, x, n_tokens, "int8")
    n_packs = -(-batch // n_tokens)
    got = codes.view(np.int8).reshape(n_packs, n_cols // 32, n_tokens, 32).transpose(0, 2, 1, 3)
    terms = scales.reshape(n_packs, n_cols // 32, 4, n_tokens).transpose(0, 3, 1, 2)
    want_codes, want_scales = quantize_activations_ref(x)
    np.testing.assert_array_equal(got.reshape(-1, n_cols)[:batch], want_codes)
    terms = terms.reshape(-1, n_cols // 32, 4)[:batch]
    np.testing.assert_array_equal(terms[..., 0], want_scales)
    halves = want_codes.reshape(batch, -1, 2, 16).sum(axis=3)
    for k, total in ((1, halves.sum(axis=2)), (2, halves[..., 0]), (3, halves[..., 1])):
        np.testing.assert_allclose(terms[..., k], want_scales * total, rtol=1e-6)


def test_packs_by_row_index_and_filler(team: KernelTeam) -> None:
    x = RNG.standard_normal((4, 32)).astype(np.float32)
    index = np.array([2, 0, -1, -1, -1, -1, 3, 3, 3, 3, 3, 3])
    codes, _ = pack(team, x, 6, "f32", index)
    got = codes.view(np.float32).reshape(2, 32, 6).transpose(0, 2, 1).reshape(12, 32)
    np.testing.assert_array_equal(got, x[np.where(index < 0, 2, index)])


@pytest.mark.parametrize("format_name", FORMATS)
def test_repack_finds_numbers_that_are_none(team: KernelTeam, format_name: str) -> None:
    rows = stored_rows(format_name, 32, 256).copy()
    if format_name == "F32":
        rows.view(np.float32)[20, 3] = np.inf
    elif format_name == "BF16":
        rows.view(np.uint16)[20, 3] = 0x7FC0
    else:
        from gguf_tools.formats import FORMATS as STORED

        if format_name == "F16":
            rows.view(np.float16)[20, 3] = np.nan
        else:
            rows[20].view(STORED[format_name].block)["d"][0] = np.nan
    bad = np.zeros(1, np.int64)
    tiles = aligned(tiled_bytes(format_name, 32, 256))
    arguments = (tiles, rows, np.arange(32), 2, 256, bad, *[0] * 32)
    team.run("repack", "repack_cpu", (format_name,), *arguments)
    assert bad[0] == 1
