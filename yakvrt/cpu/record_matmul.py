"""Records products with weights: activations are packed, then multiplied with each matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.matmul import GATE, NEXT
from ..kernels.matmul_bf16 import widened_bytes
from ..kernels.pack_activations import CODE_BYTES, TERM_BYTES
from ..kernels.pack_size import DECODE_PACKS
from ..ops import Buffer
from .matmul_choice import activation_form, matmul_kernel
from .memory import ALIGNMENT, padded

if TYPE_CHECKING:
    from .recorder import Recorder
    from .tiled_matrix import TiledMatrix


def record_matmul(
    recorder: Recorder,
    outs: Sequence[Buffer],
    matrices: Sequence[TiledMatrix],
    modes: Sequence[int],
    x: Buffer,
) -> None:
    """out = W x for each matrix. modes: what becomes of each product (kernels/matmul.py); a gate comes before
    what it gates.
    """
    pack, x_copy = recorder.pack_size(len(x.data)), recorder.memory.copy_bytes(x)
    record_matmul_places(recorder, outs, matrices, modes, x.data, x.n_rows, pack, x_copy=x_copy)


def record_matmul_places(
    recorder: Recorder,
    outs: Sequence[Buffer],
    matrices: Sequence[TiledMatrix],
    modes: Sequence[int],
    x: np.ndarray,
    n_rows: np.ndarray,
    pack: int,
    *,
    row_index: np.ndarray | None = None,
    experts: np.ndarray | None = None,
    x_copy: int = 0,
) -> None:
    """The same over rows picked by row_index (all, if None), in packs that each may name an expert."""
    memory, tape = recorder.memory, recorder.tape
    forms = [activation_form(m, pack) for m in matrices]
    for form in dict.fromkeys(forms):
        siblings = [s[:3] for s in zip(outs, matrices, modes, forms, strict=True) if s[3] == form]
        n_cols = siblings[0][1].n_cols
        places = len(row_index) if row_index is not None else padded(len(x), pack)
        private = bool(x_copy) or memory.is_private_width(len(x), n_cols)
        copies = memory.n_threads if private else 1
        code_bytes = padded(places * n_cols * CODE_BYTES[form], ALIGNMENT)
        term_bytes = padded(places * n_cols // 32 * TERM_BYTES[form], ALIGNMENT)
        codes = memory.shared("codes", copies * code_bytes)
        scales = memory.shared("scales", copies * term_bytes)
        copy_bytes = (code_bytes, term_bytes) if private else (0, 0)
        tape.add(
            kernel("pack_activations", "pack_activations_cpu", pack, form),
            codes,
            scales,
            x,
            x.strides[0],
            n_cols,
            n_rows,
            row_index,
            *copy_bytes,
            x_copy,
            barrier=not private,
        )
        wide_bytes = padded(widened_bytes(n_cols, GATE in modes), ALIGNMENT) if form == "bf16" else 0
        wide = memory.shared("widened", wide_bytes * memory.n_threads)
        for i, (out, matrix, mode) in enumerate(siblings):
            memory.write_shared(out)
            tape.reads(matrix.read_bytes(experts))
            if experts is None:  # else nobody knows yet which come next
                recorder.read_next[:] = matrix.tiles.ctypes.data, matrix.n_tiles, matrix.tile_bytes
            arguments = tape.add(
                matmul_kernel(matrix, form, pack, mode),
                out.data,
                out.data.strides[0],
                matrix.tiles,
                matrix.n_tiles,
                n_cols,
                codes,
                scales,
                n_rows,
                matrix.bias,
                mode,
                experts,
                *copy_bytes,
                wide,
                wide_bytes,
                # tiles that are shared out evenly: siblings need not wait for each other, and a thread
                # gates the very tiles that it wrote
                barrier=pack not in DECODE_PACKS or i == len(siblings) - 1,
            )
            recorder.read_next = arguments[NEXT] if experts is None else np.zeros(3, np.int64)
