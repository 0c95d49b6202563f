"""The packages that compile CUDA kernels, and which kernels have to be compiled."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..kernel_build.compilers import Progress, compile_in_helpers
from ..kernel_build.directory import content_directory
from ..kernel_build.spec import KernelSpec
from .cubin import SOURCES, Cubin, kernel_sources, read_cubin, write_cubin
from .disassembly import count_instructions

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
    return content_directory("cubins", SOURCES, (compiler_versions(),))


def compile_missing(
    wanted: Mapping[str, Iterable[KernelSpec]],
    directory: Path,
    progress: Progress | None = None,
) -> dict[str, list[Cubin]]:
    """The cubins of `directory`/arch of the kernels wanted for it, in their order, after compiling those that
    are missing, damaged or of other sources or compilers.

    Raises: OSError where the directory cannot be written, RuntimeError when a kernel does not compile.
    """
    compilers = compiler_versions()
    kernels = {arch: dict.fromkeys(specs) for arch, specs in wanted.items()}  # sets in order
    for arch in kernels:
        (directory / arch).mkdir(parents=True, exist_ok=True)

    def held(arch: str, spec: KernelSpec) -> Cubin | None:
        found = read_cubin(directory / arch, spec.symbol)
        state = (arch, kernel_sources(), compilers)
        if found and (found.manifest.arch, found.manifest.sources, found.manifest.compilers) == state:
            return found
        return None

    missing = [
        {
            "symbol": spec.symbol,
            "module": spec.module,
            "builder": spec.builder,
            "parameters": spec.parameters,
            "archs": lacking,
            "path": str(directory),
        }
        for spec in dict.fromkeys(spec for specs in kernels.values() for spec in specs)
        if (
            lacking := [arch for arch, specs in kernels.items() if spec in specs and held(arch, spec) is None]
        )
    ]
    if missing:
        compile_in_helpers("yakvrt.cuda.compile", missing, len(os.sched_getaffinity(0)), progress)
    found: dict[str, list[Cubin]] = {arch: [] for arch in kernels}
    for arch, specs in kernels.items():
        for spec in specs:
            cubin = held(arch, spec)
            if cubin is None:
                raise RuntimeError(f"kernel {spec.symbol} was compiled but is not in {directory / arch}")
            found[arch].append(cubin)
        found[arch] = _counted(found[arch], arch, directory)
    return found


def _counted(cubins: list[Cubin], arch: str, directory: Path) -> list[Cubin]:
    """With their instructions, where a disassembler is installed."""
    uncounted = [cubin for cubin in cubins if cubin.manifest.instructions is None]
    counts = count_instructions([cubin.code for cubin in uncounted], arch) if uncounted else None
    if counts is None:
        return cubins
    told = dict(zip((cubin.manifest.symbol for cubin in uncounted), counts, strict=True))
    found = []
    for cubin in cubins:
        if cubin.manifest.symbol in told:
            manifest = replace(cubin.manifest, instructions=told[cubin.manifest.symbol])
            cubin = Cubin(manifest, cubin.code)
            write_cubin(directory / arch, cubin)
        found.append(cubin)
    return found
