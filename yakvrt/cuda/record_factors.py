"""Records what gives a new query and its key proxies of low rank (LRQK)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernel_build.spec import kernel
from ..ops import Buffer
from .page_pools import PageRows
from .page_step import PageStep, proxy_strides
from .record_attention import strides


def fit_factors(step: PageStep[PageRows], q: Buffer, k: Buffer) -> tuple[Buffer, Buffer]:
    """From the keys that are on the device; the factors follow. Returns: the proxies, zeros behind rank."""
    shape, rows, batch, launch = step.rows.shape, step.rows, step.batch, step.recorder.launch
    rank, width, n_heads = shape.n_channels, rows.proxy_width, step.n_heads
    q_hat, k_hat = (step.scratch(name, step.segments * width, np.float32) for name in ("q_hat", "k_hat"))
    known = step.scratch("known", step.segments * rank, np.float32)
    square = step.scratch("square", step.segments * rank * rank, np.float32)
    work = step.scratch("work", step.segments * 2 * rank * rank, np.float32)
    sizes: tuple[Any, ...] = batch.slots, q.n_rows, n_heads, shape.sharing
    assert rows.cache
    launch(
        kernel("factor_resident", "factor_resident_cuda", shape.head_dim, shape.kind),
        (step.segments, 1),
        *(known, square, q.data, q.width, rows.basis, rows.recalled, rows.most_places, rows.places),
        *(rows.cache.k, strides(rows.cache)[1], rows.ring.k, *strides(rows.ring), shape.ring_len),
        *(rows.proxies, proxy_strides(step)[1], width, rank, batch.slots, batch.positions, *sizes[1:]),
    )
    given = q.data, q.width, k.data, k.width
    launch(
        kernel("factor_solve", "factor_solve_cuda"),
        (step.segments, 1),
        *(q_hat, k_hat, width, known, square, *given, rows.basis, work, rank, shape.head_dim, *sizes),
    )
    launch(
        kernel("factor_descend", "factor_descend_cuda"),
        (step.segments, 2),
        *(rows.basis, q_hat, k_hat, width, *given, rank, shape.head_dim, *sizes),
    )
    made = [Buffer(hat, n_heads * width, q.n_rows) for hat in (q_hat, k_hat)]
    return made[0], made[1]
