"""The clock that profiles read between ops is the system's."""

from __future__ import annotations

import numpy as np
from kernel_team import KernelTeam

from yakvrt.kernels.timestamp import timestamp_ref


def test_timestamp_lies_between_two_readings(team: KernelTeam) -> None:
    found = np.full(1, -1, np.int64)
    before = timestamp_ref()
    team.run("timestamp", "timestamp_cpu", (), found)
    assert before <= found[0] <= timestamp_ref()
