"""Attention to selected rows begins with a head when its ids are there, whatever other threads still do."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from test_kernel_yakv import BASE, N_KV_HEADS, SLOT, make_slot

from yakvrt.cpu.backend import CpuBackend
from yakvrt.cpu.tape import Tape
from yakvrt.kernels.yakv_select import NOT_YET
from yakvrt.ops import Buffer


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_head_is_attended_to_when_its_ids_are_there(n_threads: int) -> None:
    """The step without its selection waits until somebody else tells how many rows each head has."""
    backend = CpuBackend(n_threads)
    slot, n, shape = make_slot(backend, BASE), 600, BASE
    slot.prompt(0, n)
    sizes = [count * shape.head_dim for count in (N_KV_HEADS * shape.group, N_KV_HEADS, N_KV_HEADS)]
    recorder = backend.record(
        1,
        inv_freq=np.ones(shape.head_dim // 2, np.float32),
        rope_scale=1.0,
        heads=(N_KV_HEADS * shape.group, N_KV_HEADS, shape.head_dim),
    )
    q, k, v = (recorder.buffer(size) for size in sizes)
    for x in (q, k, v):
        x.data[0, : x.width] = np.random.default_rng(x.width).standard_normal(x.width)
    out = Buffer(np.full((n_threads, sizes[0]), np.nan, np.float32), sizes[0], q.n_rows)
    recorder.attend_yakv(replace(out, data=out.data[:1]), q, k, v, slot.pools.layers[0])
    counts = recorder.memory.shared("yakv_counts", N_KV_HEADS * 8).view(np.int64)
    step = backend.finish(recorder)
    step.batch.n_rows[0], step.batch.positions[0], step.batch.slots[0] = 1, n, SLOT
    step.run()
    expected, selected = out.data[0].copy(), counts.copy()
    assert np.isfinite(expected).all()
    assert (selected > 0).all()

    (tape,) = recorder.parts[0]
    assert isinstance(tape, Tape)
    unselected = Tape()
    for spec, arguments, barrier in tape._rows:
        if spec.builder != "yakv_select_cpu":
            unselected._rows.append((spec, arguments, barrier))
    unselected.finish(backend._cache.load(unselected.specs))
    out.data[:] = np.nan
    run = threading.Thread(target=backend.team.run, args=(unselected,))
    run.start()
    for head in reversed(range(N_KV_HEADS)):
        run.join(0.05)
        assert run.is_alive()
        assert counts[head] == NOT_YET
        assert np.isnan(out.data).all()
        counts[head] = selected[head]
    run.join(10)
    assert not run.is_alive()
    np.testing.assert_array_equal(out.data[0], expected)
    backend.close()
