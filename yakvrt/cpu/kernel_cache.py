"""Compiled kernels: kept on disk as object files, loaded by LLVM's linker, compiled by helper processes when
missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Thread

import llvmlite.binding as llvm

from .features import host_features
from .kernel_directory import default_directory, hold, prune
from .kernel_spec import KernelSpec
from .topology import default_threads

# done, total, symbol of the kernel just compiled; called from the threads that drive the compilers
Progress = Callable[[int, int, str], None]


MAX_COMPILERS = 8  # processes of about 200 MB each


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
        queue = sorted(specs, key=_compile_cost)
        done: list[str] = []
        failures: list[str] = []

        def drive(worker: subprocess.Popen[str]) -> None:
            assert worker.stdin is not None
            assert worker.stdout is not None
            while not failures:
                try:
                    spec = queue.pop()
                except IndexError:
                    return
                request = {
                    "module": spec.module,
                    "builder": spec.builder,
                    "parameters": spec.parameters,
                    "path": str(self._path(spec)),
                }
                try:
                    worker.stdin.write(json.dumps(request) + "\n")
                    worker.stdin.flush()
                    answer = json.loads(worker.stdout.readline())
                except (OSError, ValueError):
                    answer = {"error": "the compiler process died; is there enough memory?"}
                if "error" in answer:
                    failures.append(f"kernel {spec.symbol} cannot be compiled: {answer['error']}")
                    return
                done.append(spec.symbol)
                if progress:
                    progress(len(done), len(specs), spec.symbol)

        n_workers = min(len(specs), default_threads(), MAX_COMPILERS)
        workers = [_start_compiler() for _ in range(n_workers)]
        threads = [Thread(target=drive, args=(worker,)) for worker in workers]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # also when interrupted
            queue.clear()
            for worker in workers:
                worker.kill()
                worker.communicate()
        if failures:
            raise RuntimeError(failures[0])


def _start_compiler() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "yakvrt.cpu.compile"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        start_new_session=True,  # Ctrl-C is for us; we end it
    )


def _compile_cost(spec: KernelSpec) -> int:
    """Longest last, since the queue is drawn from its end."""
    order = ("attend_prefill", "matmul", "attend_decode", "repack")
    for rank, name in enumerate(order):
        if spec.symbol.startswith(name):
            return 10 * (len(order) - rank) + (
                max((p for p in spec.parameters if type(p) is int), default=0) > 1
            )
    return 0


def write_object(path: Path, code: bytes) -> None:
    """Writes code behind its checksum, under a temporary name first."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(hashlib.sha256(code).digest() + code)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def read_object(path: Path) -> bytes | None:
    """The code in a cache file; None when there is none or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    code = data[32:]
    return code if hashlib.sha256(code).digest() == data[:32] else None
