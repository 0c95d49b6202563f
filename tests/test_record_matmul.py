"""A recorded matmul is told which weights come next, and asks for their beginning when its own end."""

from __future__ import annotations

import numpy as np

from yakvrt.cpu.memory import aligned
from yakvrt.cpu.recorder import Recorder
from yakvrt.cpu.tape import Tape
from yakvrt.cpu.tiled_matrix import TiledMatrix, tiled_bytes
from yakvrt.kernels.matmul import NEXT


def matrix(format_name: str, n_rows: int, n_cols: int, n_experts: int = 1) -> TiledMatrix:
    tiles = aligned(tiled_bytes(format_name, n_rows, n_cols, n_experts))
    return TiledMatrix(format_name, n_rows, n_cols, n_experts, tiles)


def test_weights_of_the_next_matmul() -> None:
    recorder = Recorder(2, 1, np.ones(8, np.float32), 1.0, (1, 1, 16))
    x, inner, out = (recorder.buffer(width) for width in (256, 96, 256))
    q, k = matrix("Q4_0", 96, 256), matrix("F16", 32, 256)
    gate, up, down = matrix("Q8_0", 96, 256), matrix("Q8_0", 96, 256), matrix("Q4_1", 256, 96)
    recorder.matmul((inner, inner), (q, k), x)
    recorder.gated_matmul(inner, gate, up, x)
    recorder.next_part()
    recorder.matmul((out,), (down,), inner, add=True)
    experts = [matrix("Q8_0", *shape, 4) for shape in ((64, 256), (64, 256), (256, 64))]
    router, head = matrix("F32", 4, 256), matrix("Q8_0", 320, 256)
    recorder.moe(out, x, router, *experts, n_used=2, renormalise=True)
    recorder.matmul((recorder.buffer(320),), (head,), x)

    tapes = [piece for part in recorder.parts for piece in part if isinstance(piece, Tape)]
    rows = [row for tape in tapes for row in tape._rows if row[0].builder == "matmul_cpu"]
    told = [tuple(arguments[NEXT]) for _, arguments, _ in rows]
    nothing = (0, 0, 0)
    expected = [
        (m.tiles.ctypes.data, m.n_tiles, tiled_bytes(m.format, 32, m.n_cols) // 2)
        for m in (k, gate, up, down, router)
    ]
    # which experts follow is not known before the router's product
    assert told == [*expected, nothing, nothing, nothing, nothing, nothing]
