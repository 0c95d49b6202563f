"""Matmul of bfloat16 on matrix registers, and by AVX512-BF16, against numpy: every weight format that each
meets, bias, accumulation, experts, odd packs.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from kernel_team import KernelTeam, count, poisoned
from test_kernel_matmul import gates, pack, stored_rows, tile

from gguf_tools.dequantize import dequantize
from yakvrt.cpu.features import host_features
from yakvrt.cpu.matmul_choice import activation_form
from yakvrt.cpu.memory import aligned, padded
from yakvrt.kernels.matmul import ADD, GATE, WRITE, matmul_ref
from yakvrt.kernels.matmul_bf16 import WIDE_COLUMNS, matmul_bf16_ref, widened_bytes
from yakvrt.kernels.pack_size import PREFILL_PACK, TILE_PACK
from yakvrt.kernels.swiglu import swiglu_ref
from yakvrt.kernels.tile_layout import LAYOUTS, ROWS

RNG = np.random.default_rng(12)
FORMATS = [name for name in LAYOUTS if name != "F32"]
needs_amx = pytest.mark.skipif(not host_features().amx_bf16, reason="this CPU has no AMX")
needs_dots = pytest.mark.skipif(not host_features().avx512_bf16, reason="this CPU has no AVX512-BF16")
ON_TILES = [pytest.param(name, TILE_PACK, marks=needs_amx) for name in FORMATS]
BY_DOTS = [pytest.param(name, PREFILL_PACK, marks=needs_dots) for name in ("F16", "BF16")]


def scratch(team: KernelTeam, n_cols: int, gated: bool) -> tuple[np.ndarray, int]:
    stride = padded(widened_bytes(n_cols, gated), 64)
    memory = aligned(stride * team.n_threads)
    memory[:] = 0xFF  # NaN
    return memory, stride


def tolerance(weight: np.ndarray, x: np.ndarray) -> float:
    """Of float32 sums, and of two weights, scale * code + offset, that round to the other side."""
    sums = 1e-6 * (matmul_ref(np.abs(weight), np.abs(x)).max() + 1)
    return float(sums + 2**-6 * np.abs(weight).max() * np.abs(x).max())


@pytest.mark.parametrize(("format_name", "packed"), ON_TILES + BY_DOTS)
@pytest.mark.parametrize(
    ("n_rows", "n_cols", "batch"), [(1, 256, 1), (33, 512, 16), (96, 768, 17), (64, 256, 50), (32, 2304, 33)]
)
def test_matmul_bf16(
    team: KernelTeam, format_name: str, packed: int, n_rows: int, n_cols: int, batch: int
) -> None:
    rows = stored_rows(format_name, n_rows, n_cols)
    matrix = tile(team, format_name, rows, n_cols)
    x = RNG.standard_normal((batch, n_cols)).astype(np.float32)
    codes, _ = pack(team, x, packed, "bf16")
    out = poisoned(padded(batch, packed), padded(n_rows, 32))
    bias = np.zeros(out.shape[1], np.float32)
    bias[:n_rows] = RNG.standard_normal(n_rows)
    weight = dequantize(rows, format_name)
    for use_bias, mode in ((False, WRITE), (True, WRITE), (False, ADD), (True, ADD)):
        before = out.copy() if mode == ADD else None
        team.run(
            "matmul_bf16",
            "matmul_bf16_cpu",
            (format_name, packed, False),
            *(out, out.strides[0], matrix.tiles, matrix.n_tiles, n_cols, codes, None, count(batch)),
            *(bias if use_bias else None, mode, None, 0, 0),
            *scratch(team, n_cols, False),
        )
        added = bias[:n_rows] if use_bias else None
        expected = matmul_bf16_ref(weight, x, added, None if before is None else before[:batch, :n_rows])
        np.testing.assert_allclose(out[:batch, :n_rows], expected, rtol=0, atol=tolerance(weight, x))


@pytest.mark.parametrize(("format_name", "packed"), ON_TILES + BY_DOTS)
@pytest.mark.parametrize(
    ("n_rows", "n_cols", "batch"), [(32, 256, 1), (96, 768, 16), (64, 512, 50), (32, 2304, 33)]
)
def test_matmul_bf16_gated(
    team: KernelTeam, format_name: str, packed: int, n_rows: int, n_cols: int, batch: int
) -> None:
    """Against the product that the kernel writes: fewer blocks of columns than a register has rows, more, and
    more than a slice, whose sums are rounded in between.
    """
    matrix = tile(team, format_name, stored_rows(format_name, n_rows, n_cols), n_cols)
    x = RNG.standard_normal((batch, n_cols)).astype(np.float32)
    codes, _ = pack(team, x, packed, "bf16")
    gate = gates(padded(batch, packed), n_rows)
    for bias in (None, RNG.standard_normal(n_rows).astype(np.float32)):
        product, out = poisoned(*gate.shape), gate.copy()
        for target, mode in ((product, WRITE), (out, GATE)):
            shape = (target, target.strides[0], matrix.tiles, matrix.n_tiles, n_cols, codes, None)
            arguments = (*shape, count(batch), bias, mode, None, 0, 0, *scratch(team, n_cols, mode == GATE))
            team.run("matmul_bf16", "matmul_bf16_cpu", (format_name, packed, mode == GATE), *arguments)
        expected = swiglu_ref(gate, product)[:batch]
        assert np.isnan(expected).sum() == 1
        error = 1e-6 if n_cols <= WIDE_COLUMNS else 1e-6 * np.nanmax(np.abs(gate)) * np.abs(product).max()
        np.testing.assert_allclose(out[:batch], expected, rtol=2e-6, atol=error)


@pytest.mark.parametrize(
    ("name", "packed"),
    [pytest.param("Q4_K", TILE_PACK, marks=needs_amx), pytest.param("BF16", PREFILL_PACK, marks=needs_dots)],
)
def test_packs_of_several_experts(team: KernelTeam, name: str, packed: int) -> None:
    n_rows, n_cols, experts = 64, 256, np.array([3, 3, 0, 3, 1, 1])
    stacked = [stored_rows(name, n_rows, n_cols) for _ in range(5)]
    tiles = np.concatenate([tile(team, name, rows, n_cols).tiles for rows in stacked])
    batch = len(experts) * packed
    x = RNG.standard_normal((batch, n_cols)).astype(np.float32)
    codes, _ = pack(team, x, packed, "bf16")
    out = poisoned(batch, n_rows)
    shape = (out, out.strides[0], tiles, n_rows // ROWS, n_cols, codes, None, count(batch))
    team.run(
        "matmul_bf16",
        "matmul_bf16_cpu",
        (name, packed, False),
        *(*shape, None, 0, experts, 0, 0),
        *scratch(team, n_cols, False),
    )
    for i, expert in enumerate(experts):
        part = slice(i * packed, (i + 1) * packed)
        weight = dequantize(stacked[expert], name)
        expected = matmul_bf16_ref(weight, x[part])
        np.testing.assert_allclose(out[part], expected, rtol=0, atol=tolerance(weight, x))


@pytest.mark.parametrize("batch", [1, 16, 37])
def test_pack_rounds_to_bf16(team: KernelTeam, batch: int) -> None:
    n_cols = 96
    x = RNG.standard_normal((batch, n_cols)).astype(np.float32)
    codes, _ = pack(team, x, TILE_PACK, "bf16")
    got = codes.view(ml_dtypes.bfloat16).reshape(-1, n_cols // 32, TILE_PACK, 32).transpose(0, 2, 1, 3)
    want = np.repeat(x[:1], padded(batch, TILE_PACK), axis=0)
    want[:batch] = x
    want[batch:] = x[batch // TILE_PACK * TILE_PACK] if batch % TILE_PACK else 0
    np.testing.assert_array_equal(got.reshape(-1, n_cols), want.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_K"])
def test_which_weights_take_which_path(team: KernelTeam, name: str) -> None:
    matrix = tile(team, name, stored_rows(name, 16, 256), 256)
    exact = "f32" if LAYOUTS[name].is_float else "int8"
    assert activation_form(matrix, TILE_PACK) == ("f32" if name == "F32" else "bf16")
    by_dots = name in ("F16", "BF16") and host_features().fast_bf16_dots
    assert activation_form(matrix, PREFILL_PACK) == ("bf16" if by_dots else exact)
    assert activation_form(matrix, 1) == exact
