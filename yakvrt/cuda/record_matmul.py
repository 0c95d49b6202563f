"""Records matmuls: activations in the form that the weights multiply, then one launch for each matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.activation_tiles import TILE_COLUMNS, TILE_WORDS, tile_counts
from ..kernels.device_layout import UNIT
from ..kernels.matmul_bf16_cuda import OUTPUTS
from ..kernels.matmul_cuda import ROWS_AT_ONCE, WARPS
from ..ops import Buffer
from .device_array import DeviceArray
from .device_matrix import DeviceMatrix
from .kernel_choice import activation_form, decode_matmul, decode_pack, prefill_tile, wgmma_tile

if TYPE_CHECKING:
    from .recorder import CudaRecorder


@dataclass(frozen=True, slots=True)
class Packs:
    """Places of rows in packs of one expert each (kernels/moe_cuda.py): up to `n` packs of `size` places."""

    n: int
    size: int
    experts: DeviceArray
    rows: DeviceArray
    n_places: DeviceArray


def record_matmul(
    recorder: CudaRecorder,
    outs: Sequence[Buffer],
    matrices: Sequence[DeviceMatrix],
    x: Buffer,
    modes: Sequence[int],
    packs: Packs | None = None,
    gathered: bool = False,
) -> None:
    """outs[i] = matrices[i] x (modes: kernels/matmul.py), of the rows of x or, in packs, of places: those
    are `gathered` from the rows that the packs name, or rows of x themselves.
    """
    n_rows, n_cols = len(x.data), x.width
    rows_at_once = packs.size if packs else n_rows
    prepared: dict[str, tuple[Any, Any]] = {}
    for out, matrix, mode in zip(outs, matrices, modes, strict=True):
        form = activation_form(recorder.arch, matrix.format, rows_at_once, packs is not None)
        if form not in prepared:
            prepared[form] = _activations(recorder, x, form)
        given, terms = prepared[form]
        n_read = min(matrix.n_experts, packs.n) if packs else matrix.n_experts
        recorder.reads(matrix.n_bytes * n_read // matrix.n_experts)
        places = (packs.experts, packs.rows, int(gathered)) if packs else (None, None, 0)
        present = packs.n_places if packs else x.n_rows
        codes, high, scales, supers = matrix.planes
        head = (out.data, out.width, codes, high, scales, supers, matrix.n_rows, n_cols, given)
        tail = (matrix.bias, int(matrix.bias is not None), mode, present)
        down = -(-matrix.n_rows // OUTPUTS)  # of either kernel for many rows
        if form == "tiles":
            tile = wgmma_tile(n_rows, matrix.n_rows)
            spec = kernel("matmul_wgmma_cuda", "matmul_wgmma_cuda", matrix.format, tile)
            recorder.launch(spec, (-(-n_rows // tile), down), *head, *tail)
        elif form == "bf16":
            tile = packs.size if packs else prefill_tile(n_rows)
            spec = kernel("matmul_bf16_cuda", "matmul_bf16_cuda", matrix.format, tile, packs is not None)
            grid = (packs.n if packs else -(-n_rows // tile), down)
            recorder.launch(spec, grid, *head, *tail, *places)
        else:
            pack = packs.size if packs else decode_pack(n_rows)
            spec, split = decode_matmul(matrix.format, pack, matrix.n_rows, packs is not None)
            across = -(-matrix.n_rows // (ROWS_AT_ONCE * WARPS // split))
            recorder.launch(
                spec, (across, packs.n if packs else -(-n_rows // pack)), *head, terms, *tail, *places
            )


def _activations(recorder: CudaRecorder, x: Buffer, form: str) -> tuple[Any, Any]:
    """(numbers, terms) in this form."""
    n_rows, n_cols = len(x.data), x.width
    if form == "f32":
        return x.data, None
    if form == "bf16":
        words = recorder.scratch("rounded", n_rows * n_cols // 2, np.uint32)
        spec = kernel("pack_activations", "round_activations_cuda")
        recorder.launch(spec, (-(-n_cols // 1024), n_rows), words, x.data, n_cols, x.n_rows)
        return words, None
    if form == "tiles":
        down, across = tile_counts(n_rows, n_cols)
        words = recorder.scratch("tiles", down * across * TILE_WORDS, np.uint32)
        spec = kernel("activation_tiles", "round_tiles_cuda")
        grid = (-(-across * TILE_COLUMNS // 1024), n_rows)
        recorder.launch(spec, grid, words, x.data, n_cols, x.n_rows)
        return words, None
    codes = recorder.scratch("codes", n_rows * n_cols // 4, np.uint32)
    terms = recorder.scratch("terms", n_rows * n_cols // UNIT * 2, np.float32)
    spec = kernel("pack_activations", "quantize_activations_cuda")
    recorder.launch(spec, (-(-n_cols // 512), n_rows), codes, terms, x.data, n_cols, x.n_rows)
    return codes, terms
