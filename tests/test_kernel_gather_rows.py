"""Copies and gathers of host memory against numpy: any row size, stride and order, nothing beyond the end."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_team import KernelTeam

from yakvrt.cpu.memory import aligned
from yakvrt.kernels.copy_bytes import copy_bytes_ref
from yakvrt.kernels.gather_rows import gather_rows_ref

RNG = np.random.default_rng(41)
PAST = 64  # bytes behind the output, which must stay as they were


def poisoned_bytes(n_bytes: int) -> np.ndarray:
    """Bytes of float32 NaNs, and as many as PAST behind them."""
    out = aligned(n_bytes + PAST)
    out[:] = 0xFF
    return out


@pytest.mark.parametrize("n_bytes", [64, 4096, 64 * 333])
@pytest.mark.parametrize("offset", [0, 16])
def test_copy_bytes(team: KernelTeam, n_bytes: int, offset: int) -> None:
    source = RNG.integers(0, 256, n_bytes + offset, np.uint8)[offset:]
    out = poisoned_bytes(n_bytes)
    team.run("copy_bytes", "copy_bytes_cpu", (), out, source, n_bytes)
    np.testing.assert_array_equal(out[:n_bytes], copy_bytes_ref(source))
    assert (out[n_bytes:] == 0xFF).all()


@pytest.mark.parametrize("row_bytes", [8, 32, 72, 128, 4160])
@pytest.mark.parametrize("n_rows", [0, 1, 7, 300])
def test_gather_rows(team: KernelTeam, row_bytes: int, n_rows: int) -> None:
    for stride, offset in ((row_bytes, 0), (row_bytes + 24, 16)):
        memory = RNG.integers(0, 256, 401 * stride + offset, np.uint8)
        source = memory[offset:]
        rows = source[: 401 * stride].reshape(401, stride)[:, :row_bytes]
        ids = RNG.integers(0, 401, n_rows).astype(np.int32)
        ids[:1] = 400  # the last row: nothing behind it may be read as a row
        out = poisoned_bytes(n_rows * row_bytes)
        arguments = (out, source, stride, ids, n_rows)
        team.run("gather_rows", "gather_rows_cpu", (row_bytes,), *arguments)
        found = out[: n_rows * row_bytes].reshape(n_rows, row_bytes)
        np.testing.assert_array_equal(found, gather_rows_ref(rows, ids))
        assert (out[n_rows * row_bytes :] == 0xFF).all()
