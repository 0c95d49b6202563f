"""Compiled kernels: kept on disk as object files, loaded by LLVM's linker, compiled by helper processes when
missing.
"""

from __future__ import annotations

import os
import sys
import tempfile
import weakref
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm

from ..kernel_build.compilers import Progress, compile_in_helpers
from ..kernel_build.directory import content_directory, hold, prune
from ..kernel_build.files import read_object
from ..kernel_build.spec import KernelSpec
from .features import host_features
from .topology import default_threads


class KernelCache:
    """Turns kernel specs into addresses of machine code.

    Owns: the linker holding the code; addresses stay valid as long as this object.
    Raises: RuntimeError when a kernel does not compile.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or default_directory()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        try:
            weakref.finalize(self, os.close, hold(self._directory))
            writable = os.access(self._directory, os.W_OK)
        except OSError:
            writable = False
        if writable and directory is None:
            prune(self._directory)
        if not writable:
            print(
                f"yakvrt: {self._directory} is not writable; kernels are compiled for this run only",
                file=sys.stderr,
            )
            self._temporary = tempfile.TemporaryDirectory(prefix="yakvrt-kernels-")
            self._directory = Path(self._temporary.name)
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = host_features()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=features.cpu_name, features=features.flags, jit=True
        )
        self._linker = llvm.create_lljit_compiler(machine)
        self._libraries: dict[str, llvm.ResourceTracker] = {}

    def load(self, specs: Iterable[KernelSpec], progress: Progress | None = None) -> dict[KernelSpec, int]:
        """The address of every spec, compiling those the cache lacks."""
        wanted = list(dict.fromkeys(specs))
        objects = {
            spec: read_object(self._path(spec)) for spec in wanted if spec.symbol not in self._libraries
        }
        missing = [spec for spec, code in objects.items() if code is None]
        if missing:
            self._compile(missing, progress)
            objects.update({spec: read_object(self._path(spec)) for spec in missing})
        for spec, code in objects.items():
            if code is None:
                raise RuntimeError(f"kernel {spec.symbol} was compiled but is not in {self._directory}")
            builder = llvm.JITLibraryBuilder().add_object_img(code).add_current_process()
            self._libraries[spec.symbol] = builder.export_symbol(spec.symbol).link(self._linker, spec.symbol)
        return {spec: self._libraries[spec.symbol][spec.symbol] for spec in wanted}

    def _path(self, spec: KernelSpec) -> Path:
        return self._directory / f"{spec.symbol}.o"

    def _compile(self, specs: list[KernelSpec], progress: Progress | None) -> None:
        requests = [
            {
                "symbol": spec.symbol,
                "module": spec.module,
                "builder": spec.builder,
                "parameters": spec.parameters,
                "path": str(self._path(spec)),
            }
            for spec in sorted(specs, key=_compile_cost)
        ]
        compile_in_helpers("yakvrt.cpu.compile", requests, default_threads(), progress)


def default_directory() -> Path:
    features = host_features()
    parts = (version("numba"), version("llvmlite"), sys.version, features.cpu_name, features.flags)
    return content_directory("kernels", ("kernels/*.py", "cpu/*.py"), parts)


def _compile_cost(spec: KernelSpec) -> int:
    """Longest last, since the queue is drawn from its end."""
    order = ("attend_prefill", "matmul", "attend_decode", "repack")
    for rank, name in enumerate(order):
        if spec.symbol.startswith(name):
            return 10 * (len(order) - rank) + (
                max((p for p in spec.parameters if type(p) is int), default=0) > 1
            )
    return 0
