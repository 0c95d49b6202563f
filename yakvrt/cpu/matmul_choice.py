"""Which of several kernels multiplies a matrix, and what it takes of the activations."""

from __future__ import annotations

from ..kernel_build.spec import KernelSpec, kernel
from ..kernels.matmul import GATE
from ..kernels.pack_size import PREFILL_PACK, TILE_PACK
from ..kernels.tile_layout import BLOCK, LAYOUTS
from .features import host_features
from .tiled_matrix import TiledMatrix


def activation_form(matrix: TiledMatrix, pack: int) -> str:
    """What a matrix multiplies. Packs for matrix registers are bfloat16, and those of 16-bit weights where
    dot products of bfloat16 are fast; float32 weights stay exact.
    """
    is_float = LAYOUTS[matrix.format].is_float
    fast = pack == TILE_PACK or (pack == PREFILL_PACK and is_float and host_features().fast_bf16_dots)
    if fast and matrix.format != "F32" and matrix.n_cols % BLOCK == 0:
        return "bf16"
    return "f32" if is_float else "int8"


def matmul_kernel(matrix: TiledMatrix, form: str, pack: int, mode: int) -> KernelSpec:
    if form == "bf16":
        return kernel("matmul_bf16", "matmul_bf16_cpu", matrix.format, pack, mode == GATE)
    return kernel("matmul", "matmul_cpu", matrix.format, pack)
