"""Matmuls: decode of a few rows, prefill on tensor cores, and what packs their operands."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from yakvrt.cuda.kernel_choice import DECODE_SHAPES, PREFILL_TILES, WGMMA_TILES
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.activation_tiles import TILE_COLUMNS, TILE_ROWS, activation_tiles_ref
from yakvrt.kernels.device_layout import DEVICE_LAYOUTS, TENSOR_CORE_FORMATS
from yakvrt.kernels.matmul import ADD, GATE, WRITE, matmul_ref
from yakvrt.kernels.matmul_bf16_cuda import OUTPUTS
from yakvrt.kernels.matmul_cuda import ROWS_AT_ONCE, WARPS
from yakvrt.kernels.matmul_wgmma_cuda import ARCHITECTURE
from yakvrt.kernels.swiglu import swiglu_ref

from .arrays import bf16_words, blocks, count, normal, poisoned, repeated, sample
from .case import COPY, PRODUCT, Case, Launch, Sized, compare, sized, untouched, written
from .weights import device_matrix, int8_activations, nbytes


def decode_matmul(
    name: str,
    n_tokens: int,
    split: int,
    batch: int,
    n_outputs: int,
    n_cols: int,
    mode: int = WRITE,
    with_bias: bool = False,
) -> Case:
    """`batch` rows, `n_tokens` at a time; more columns of `out` than there are outputs, a row too many."""
    layout = DEVICE_LAYOUTS[name]
    weights, planes = device_matrix(name, n_outputs, n_cols)
    x, bias = normal(batch, n_cols), normal(n_outputs) if with_bias else None
    given, terms, used = (x, None, x) if layout.is_float else int8_activations(x)
    out, before = _output(batch, n_outputs, n_outputs + 3, mode)
    spec = kernel("matmul_cuda", "matmul_cuda", name, n_tokens, split, False)
    grid = (blocks(n_outputs, ROWS_AT_ONCE * WARPS // split), blocks(batch, n_tokens) + 1)
    arguments = (out, out.shape[1], *planes, n_outputs, n_cols, given, terms, bias, int(with_bias), mode)
    launch = Launch(
        spec,
        grid,
        [out],
        (*arguments, count(batch), None, None, 0),
        nbytes(*planes, given, terms, bias) + batch * n_outputs * 4,
        2 * batch * n_outputs * n_cols,
        COPY,
    )
    tolerance = 1e-6 * max(1, n_cols / 1024) ** 0.5
    return Case([launch], partial(_check, out, weights, used, bias, mode, before, tolerance))


def prefill_matmul(
    name: str,
    tile: int,
    batch: int,
    n_outputs: int,
    n_cols: int,
    mode: int = WRITE,
    with_bias: bool = False,
) -> Case:
    """`batch` tokens in bfloat16, `tile` of them at a time."""
    weights, planes = device_matrix(name, n_outputs, n_cols)
    x, words = bf16_words(normal(batch, n_cols))
    bias = normal(n_outputs) if with_bias else None
    out, before = _output(batch, n_outputs, n_outputs + 1, mode)
    spec = kernel("matmul_bf16_cuda", "matmul_bf16_cuda", name, tile, False)
    grid = (blocks(batch, tile) + 1, blocks(n_outputs, OUTPUTS))
    arguments = (out, out.shape[1], *planes, n_outputs, n_cols, words, bias, int(with_bias), mode)
    launch = Launch(
        spec,
        grid,
        [out],
        (*arguments, count(batch), None, None, 0),
        nbytes(*planes, words, bias) + batch * n_outputs * 4,
        2 * batch * n_outputs * n_cols,
        PRODUCT if batch > 256 else COPY,
    )
    rounded, _ = bf16_words(weights)
    tolerance = 2e-6 * max(1, n_cols / 1024) ** 0.5
    return Case([launch], partial(_check, out, rounded, x, bias, mode, before, tolerance))


def wgmma_matmul(
    name: str,
    tile: int,
    batch: int,
    n_outputs: int,
    n_cols: int,
    mode: int = WRITE,
    with_bias: bool = False,
) -> Case:
    """As prefill_matmul, of activations in tiles."""
    made = prefill_matmul(name, tile, batch, n_outputs, n_cols, mode, with_bias)
    (launch,) = made.launches
    *head, words, bias, has_bias, mode, n_rows, _, _, _ = launch.arguments
    spec = kernel("matmul_wgmma_cuda", "matmul_wgmma_cuda", name, tile)
    arguments = (*head, activation_tiles(words), bias, has_bias, mode, n_rows)
    return replace(made, launches=[replace(launch, kernel=spec, arguments=arguments)])


def activation_tiles(words: np.ndarray) -> np.ndarray:
    """Further rows are no numbers."""
    tiles = activation_tiles_ref(words)
    n = len(words) % TILE_ROWS
    if n:
        tiles[-1, :, n:] = 0xFFFFFFFF
    return tiles


def _output(batch: int, n_outputs: int, width: int, mode: int) -> tuple[np.ndarray, np.ndarray]:
    """A poisoned output with a row more than the batch, and what it held before."""
    out = poisoned(batch + 1, width)
    if mode != WRITE:
        out[:batch, :n_outputs] = normal(batch, n_outputs)
    return out, out[:batch, :n_outputs].copy()


def _check(
    out: np.ndarray,
    weights: np.ndarray,
    x: np.ndarray,
    bias: np.ndarray | None,
    mode: int,
    before: np.ndarray,
    tolerance: float,
) -> float:
    """The weights are the distinct rows; errors count relative to the largest sum of absolute products."""
    (batch, n_outputs), rows = before.shape, sample(len(before), 256)
    product = repeated(matmul_ref(weights, x[rows]), n_outputs, 1)
    if bias is not None:
        product = product + bias
    if mode == ADD:
        product = product + before[rows]
    elif mode == GATE:
        product = swiglu_ref(before[rows], product)
    scale = matmul_ref(np.abs(weights), np.abs(x[:64])).max() + 1
    written("out", out[:batch, :n_outputs])
    untouched("further columns", out[:batch, n_outputs:])
    untouched("further rows", out[batch:])
    return compare("out", out[rows, :n_outputs] / scale, product / scale, atol=tolerance)


def quantize_activations(n_rows: int, n_cols: int) -> Case:
    x = normal(n_rows + 1, n_cols)
    x[0, :32], x[n_rows - 1, 3] = 0, -1000
    codes, terms = poisoned(n_rows + 1, n_cols // 4, dtype=np.uint32), poisoned(n_rows + 1, n_cols // 32, 2)
    launch = Launch(
        kernel("pack_activations", "quantize_activations_cuda"),
        (blocks(n_cols, 512), n_rows + 1),
        [codes, terms],
        (codes, terms, x, n_cols, count(n_rows)),
        nbytes(x, codes, terms),
    )

    def check() -> float:
        expected_codes, expected_terms, _ = int8_activations(x[:n_rows])
        compare("codes", codes[:n_rows], expected_codes)
        compare("terms", terms[:n_rows].view(np.uint32), expected_terms.view(np.uint32))
        return max(untouched("codes", codes[n_rows:]), untouched("terms", terms[n_rows:]))

    return Case([launch], check)


def round_activations(n_rows: int, n_cols: int) -> Case:
    x, out = normal(n_rows + 1, n_cols), poisoned(n_rows + 1, n_cols // 2, dtype=np.uint32)
    launch = Launch(
        kernel("pack_activations", "round_activations_cuda"),
        (blocks(n_cols, 1024), n_rows + 1),
        [out],
        (out, x, n_cols, count(n_rows)),
        nbytes(x, out),
    )

    def check() -> float:
        compare("out", out[:n_rows], bf16_words(x[:n_rows])[1])
        return untouched("further rows", out[n_rows:])

    return Case([launch], check)


def round_tiles(n_rows: int, n_cols: int) -> Case:
    x = normal(n_rows + 1, n_cols)
    expected = activation_tiles_ref(bf16_words(x[:n_rows])[1])
    out = poisoned(*expected.shape, dtype=np.uint32)
    launch = Launch(
        kernel("activation_tiles", "round_tiles_cuda"),
        (blocks(expected.shape[1] * TILE_COLUMNS, 1024), n_rows + 1),
        [out],
        (out, x, n_cols, count(n_rows)),
        nbytes(x, out),
    )

    def check() -> float:
        flat, wanted = (
            tiles.transpose(0, 2, 1, 3).reshape(-1, tiles.shape[1] * 32) for tiles in (out, expected)
        )
        compare("out", flat[:n_rows], wanted[:n_rows])
        return untouched("further rows", flat[n_rows:])

    return Case([launch], check)


def small() -> list[Sized]:
    return [
        sized("quantize activations", quantize_activations, 2, 256),
        sized("round activations", round_activations, 2, 256),
        sized("decode matmul BF16", decode_matmul, "BF16", 1, 4, 1, 18, 64),
        sized("decode matmul Q4_K", decode_matmul, "Q4_K", 8, 1, 3, 5, 512),
        sized("prefill matmul Q4_K", prefill_matmul, "Q4_K", 32, 5, 18, 256),
        sized("round activations to tiles", round_tiles, 2, 96),
        sized("wgmma matmul Q8_0", wgmma_matmul, "Q8_0", 128, 5, 18, 96),
    ]


def real() -> list[Sized]:
    """The up projection of Llama-3.1-8B; with gate for decode."""
    made = [
        sized("quantize activations", quantize_activations, 4096, 4096),
        sized("round activations", round_activations, 4096, 4096),
        Sized("round activations to tiles", partial(round_tiles, 4096, 4096), ARCHITECTURE),
    ]
    for name in DEVICE_LAYOUTS:
        for n_tokens, split in DECODE_SHAPES:
            what = f"decode matmul {name}, rows {n_tokens}, {split} warps a row"
            made.append(sized(what, decode_matmul, name, n_tokens, split, n_tokens, 28672, 4096))
        for tile in PREFILL_TILES if name in TENSOR_CORE_FORMATS else ():
            batch = 4096 if tile == max(PREFILL_TILES) else tile
            what = f"prefill matmul {name}, rows {batch}, tiles of {tile}"
            made.append(sized(what, prefill_matmul, name, tile, batch, 14336, 4096))
        for tile in WGMMA_TILES if name in TENSOR_CORE_FORMATS else ():
            batch = 4096 if tile == max(WGMMA_TILES) else tile
            what = f"wgmma matmul {name}, rows {batch}, tiles of {tile}"
            sizes = name, tile, batch, 14336, 4096
            made.append(Sized(what, partial(wgmma_matmul, *sizes), ARCHITECTURE))
    return made
