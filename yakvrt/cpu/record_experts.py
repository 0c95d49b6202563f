"""Records a mixture-of-experts feed-forward: route, sort tokens into packs per expert, multiply, combine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.matmul import GATE, WRITE
from ..kernels.moe import max_packs
from ..ops import Buffer
from .memory import ROW_FLOATS, padded
from .record_matmul import record_matmul_places

if TYPE_CHECKING:
    from .recorder import Recorder
    from .tiled_matrix import TiledMatrix


def record_experts(
    recorder: Recorder,
    x: Buffer,
    h: Buffer,
    matrices: tuple[TiledMatrix, TiledMatrix, TiledMatrix, TiledMatrix],
    n_used: int,
    renormalise: bool,
) -> None:
    """x += sum over the chosen experts of weight * down(silu(gate h) * up h).

    matrices: router, gate, up, down; the last three stacks of all experts.
    """
    router, gate, up, down = matrices
    shared, tape, capacity = recorder.memory.shared, recorder.tape, recorder.capacity
    n_experts = gate.n_experts
    pack = recorder.pack_size(-(-capacity * n_used // n_experts))  # an expert's share of the rows
    places = max_packs(capacity, n_used, n_experts, pack) * pack
    ids, weights = (shared(f"expert_{name}", capacity * n_used * 8) for name in ("ids", "weights"))
    pack_expert, pack_row = shared("pack_expert", places // pack * 8), shared("pack_row", places * 8)
    place_of_pair = shared("place_of_pair", capacity * n_used * 8)
    n_places = shared("n_places", 8).view(np.int64)

    def buffer(name: str, rows: int, width: int, n_rows: np.ndarray) -> Buffer:
        memory = shared(name, rows * padded(width, ROW_FLOATS) * 4).view(np.float32)
        return Buffer(memory.reshape(rows, -1), width, n_rows)

    logits = buffer("router_logits", len(h.data), n_experts, h.n_rows)
    recorder.matmul((logits,), (router,), h)
    tape.add(
        kernel("moe", "moe_route_cpu"),
        ids,
        weights,
        logits.data,
        logits.data.strides[0],
        n_experts,
        n_used,
        int(renormalise),
        h.n_rows,
    )
    tape.add(
        kernel("moe", "moe_dispatch_cpu", pack),
        pack_expert,
        pack_row,
        place_of_pair,
        n_places,
        ids,
        n_experts,
        n_used,
        h.n_rows,
        shared("expert_starts", n_experts * 8),
    )
    inner = buffer("expert_inner", places, gate.n_rows, n_places)
    record_matmul_places(
        recorder,
        (inner, inner),
        (gate, up),
        (WRITE, GATE),
        h.data,
        n_places,
        pack,
        row_index=pack_row.view(np.int64),
        experts=pack_expert,
        x_copy=recorder.memory.copy_bytes(h),
    )
    results = buffer("expert_down", places, down.n_rows, n_places)
    record_matmul_places(
        recorder, (results,), (down,), (WRITE,), inner.data, n_places, pack, experts=pack_expert
    )
    tape.add(
        kernel("moe", "moe_combine_cpu"),
        x.data,
        x.data.strides[0],
        results.data,
        results.data.strides[0],
        place_of_pair,
        weights,
        x.width,
        n_used,
        x.n_rows,
    )
