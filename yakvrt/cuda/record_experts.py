"""Records a mixture-of-experts feed-forward: route, sort tokens into packs per expert, multiply, combine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.matmul import GATE, WRITE
from ..kernels.moe import max_packs
from ..ops import Buffer
from .device_matrix import DeviceMatrix
from .kernel_choice import expert_pack
from .record_matmul import Packs, record_matmul

if TYPE_CHECKING:
    from .recorder import CudaRecorder


def record_experts(
    recorder: CudaRecorder,
    x: Buffer,
    h: Buffer,
    matrices: tuple[DeviceMatrix, DeviceMatrix, DeviceMatrix, DeviceMatrix],
    n_used: int,
    renormalise: bool,
) -> None:
    """x += sum over the chosen experts of weight * down(silu(gate h) * up h).

    matrices: router, gate, up, down; the last three stacks of all experts.
    """
    router, gate, up, down = matrices
    capacity, n_experts = recorder.capacity, gate.n_experts
    size = expert_pack(capacity * n_used, n_experts, {gate.format, up.format, down.format})
    n_packs = max_packs(capacity, n_used, n_experts, size)
    ids = recorder.scratch("expert_ids", capacity * n_used, np.int32)
    weights = recorder.scratch("expert_weights", capacity * n_used, np.float32)
    places = recorder.scratch("place_of_pair", capacity * n_used, np.int32)
    packs = Packs(
        n_packs,
        size,
        recorder.scratch("pack_expert", n_packs, np.int32),
        recorder.scratch("pack_row", n_packs * size, np.int32),
        recorder.scratch("n_places", 1, np.int64),
    )

    def buffer(name: str, rows: int, width: int, present: object) -> Buffer:
        memory = recorder.scratch(name, rows * width, np.float32)
        return Buffer(memory.reshaped((rows, width)), width, present)  # type: ignore[arg-type]

    logits = buffer("router_logits", capacity, n_experts, h.n_rows)
    record_matmul(recorder, (logits,), (router,), h, (WRITE,))
    recorder.launch(
        kernel("moe_cuda", "moe_route_cuda"),
        (capacity, 1),
        *(ids, weights, logits.data, n_experts, n_used, int(renormalise), h.n_rows),
    )
    recorder.launch(
        kernel("moe_cuda", "moe_dispatch_cuda", size),
        (n_experts, 1),
        *(packs.experts, packs.rows, places, packs.n_places, ids, n_experts, n_used, h.n_rows),
    )
    inner = buffer("expert_inner", n_packs * size, gate.n_rows, packs.n_places)
    record_matmul(recorder, (inner, inner), (gate, up), h, (WRITE, GATE), packs, gathered=True)
    results = buffer("expert_results", n_packs * size, down.n_rows, packs.n_places)
    record_matmul(recorder, (results,), (down,), inner, (WRITE,), packs)
    recorder.launch(
        kernel("moe_cuda", "moe_combine_cuda"),
        (-(-x.width // 512), capacity),
        *(x.data, x.width, results.data, results.width, places, weights, x.width, n_used, x.n_rows),
    )
