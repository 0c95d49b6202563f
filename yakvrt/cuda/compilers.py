"""The packages that compile CUDA kernels, and which kernels have to be compiled."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..kernel_build.compilers import Progress, compile_in_helpers
from ..kernel_build.directory import content_directory
from ..kernel_build.spec import KernelSpec
from .cubin import Cubin, kernel_sources, read_cubin

PACKAGES = (
    "numba-cuda",
    "numba",
    "llvmlite",
    "cuda-core",
    "nvidia-nvvm",
    "nvidia-nvjitlink",
    "nvidia-cuda-nvrtc",
)


def compiler_versions() -> str:
    """Raises: RuntimeError naming what is not installed."""
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise RuntimeError(
            f"compiling CUDA kernels takes {', '.join(missing)}: run pip install 'yakvrt[cuda]', or take"
            " cubins built elsewhere by python -m yakvrt kernels build"
        )
    return ", ".join(found)


def cache_path() -> Path:
    """Where this user's cubins lie.

    Raises: RuntimeError as compiler_versions does.
    """
    return content_directory("cubins", ("kernels", "cuda"), (compiler_versions(),))


def compile_missing(
    specs: Iterable[KernelSpec], arch: str, directory: Path, progress: Progress | None = None
) -> dict[KernelSpec, Cubin]:
    """The cubins of `directory`/`arch`, after compiling those that are missing, damaged or of other sources.

    Raises: OSError where the directory cannot be written, RuntimeError when a kernel does not compile.
    """
    wanted = list(dict.fromkeys(specs))
    place = directory / arch
    place.mkdir(parents=True, exist_ok=True)
    sources, compilers = kernel_sources(), compiler_versions()

    def held(spec: KernelSpec) -> Cubin | None:
        found = read_cubin(place, spec.symbol)
        if found is None or found.manifest.arch != arch:
            return None
        current = found.manifest.sources == sources and found.manifest.compilers == compilers
        return found if current else None

    cubins = {spec: held(spec) for spec in wanted}
    missing = [
        {
            "symbol": spec.symbol,
            "module": spec.module,
            "builder": spec.builder,
            "parameters": spec.parameters,
            "arch": arch,
            "path": str(place),
        }
        for spec, cubin in cubins.items()
        if cubin is None
    ]
    if missing:
        compile_in_helpers("yakvrt.cuda.compile", missing, len(os.sched_getaffinity(0)), progress)
    found: dict[KernelSpec, Cubin] = {}
    for spec, cubin in cubins.items():
        made = cubin or held(spec)
        if made is None:
            raise RuntimeError(f"kernel {spec.symbol} was compiled but is not in {place}")
        found[spec] = made
    return found
