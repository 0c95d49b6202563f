"""A SwiGLU's two products as a step records them: one token and many, weights of one kind and of two."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kernel_team import KernelTeam
from test_kernel_matmul import stored_rows, tile

from yakvrt.cpu.backend import CpuBackend
from yakvrt.cpu.memory import padded
from yakvrt.kernels.swiglu import swiglu_ref

N_ROWS, N_COLS = 96, 256
RNG = np.random.default_rng(13)


@pytest.fixture
def backend(team: KernelTeam) -> Iterator[CpuBackend]:
    backend = CpuBackend(team.n_threads)
    yield backend
    backend.close()


@pytest.mark.parametrize(
    "formats", [("Q4_1", "Q4_1"), ("F16", "Q8_0"), ("Q8_0", "F32"), ("F32", "F32")], ids="-".join
)
@pytest.mark.parametrize(("capacity", "n_rows"), [(1, 1), (8, 5), (40, 37)])
def test_gated_matmul(
    team: KernelTeam, backend: CpuBackend, formats: tuple[str, str], capacity: int, n_rows: int
) -> None:
    """Against the two products that the same backend writes apart."""
    gate, up = (tile(team, name, stored_rows(name, N_ROWS, N_COLS), N_COLS) for name in formats)
    recorder = backend.record(capacity, inv_freq=np.ones(8, np.float32), rope_scale=1.0, heads=(1, 1, 16))
    x = recorder.buffer(N_COLS)
    outs = [recorder.buffer(N_ROWS) for _ in range(3)]
    x.data[:n_rows] = RNG.standard_normal((n_rows, N_COLS)) * 4
    for out in outs:
        out.data[:] = np.nan
    recorder.matmul(outs[:2], (gate, up), x)
    recorder.gated_matmul(outs[2], gate, up, x)
    step = backend.finish(recorder)
    step.batch.n_rows[0] = n_rows
    step.run()
    written = [out.data[:n_rows, :N_ROWS] for out in outs]
    np.testing.assert_allclose(written[2], swiglu_ref(*written[:2]), rtol=2e-6, atol=1e-6)
    assert np.isnan(outs[2].data[padded(n_rows, 16) :]).all()
