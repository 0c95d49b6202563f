"""Compiles CUDA kernels without a GPU: Numba makes PTX, nvJitLink a cubin.

Run as a process of its own (`python -m yakvrt.cuda.compile`), so that the process that runs a model never
imports Numba.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..kernel_build.compilers import answer_requests
from ..kernel_build.spec import KernelSpec
from .architecture import ARCHITECTURES, OLDEST
from .compilers import compiler_versions
from .cubin import Cubin, Manifest, Resources, kernel_sources, write_cubin


def compile_cubins(spec: KernelSpec, archs: Iterable[str]) -> Iterator[Cubin]:
    """Of every architecture, from the same PTX: it runs on later GPUs than the one it is made for, and making
    it takes most of the time.

    Raises: RuntimeError for code that computes in float64.
    """
    from . import device_ops

    kernel = spec.build(device_ops)
    ptx = make_ptx(kernel, spec.symbol)
    if ".f64" in ptx:  # a Python number among float32 does it, and would cost 64 times the time
        raise RuntimeError(f"{spec.symbol} computes in float64: wrap its constants in g.float32(...)")
    for arch in archs:
        code, log = assemble(ptx, arch)
        manifest = Manifest(
            spec.symbol,
            arch,
            kernel.parameters(),
            kernel.threads,
            kernel.shared_bytes,
            list(kernel.opcodes),
            asdict(kernel.work) if kernel.work else None,
            read_resources(log),
            None,  # counted for many at once (compilers.py)
            kernel_sources(),
            compiler_versions(),
            hashlib.sha256(code).hexdigest(),
        )
        yield Cubin(manifest, code)


def make_ptx(kernel: Any, symbol: str) -> str:
    """PTX for the oldest architecture, or the kernel's only one; its entry is called `symbol`."""
    with contextlib.suppress(ImportError):
        # what a .pth file does, unless the packages lie in a directory of PYTHONPATH
        import _numba_cuda_redirector  # noqa: F401
    from numba import cuda
    from numba.cuda import dispatcher, types

    if getattr(cuda, "implementation", "") != "NVIDIA":
        raise RuntimeError("Numba's own CUDA target was loaded, not numba-cuda's: install numba-cuda again")
    # What kernels call would be compiled for the GPU at hand. It becomes part of them, for whatever GPU.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=OLDEST)
    numbers = {
        "u8": types.uint8,
        "u16": types.uint16,
        "u32": types.uint32,
        "u64": types.uint64,
        "i32": types.int32,
        "i64": types.int64,
        "f32": types.float32,
    }

    def numba_type(word: str) -> Any:
        number = numbers[word.removesuffix("*")]
        return types.CPointer(number) if word.endswith("*") else number

    signature = types.void(*(numba_type(word) for word in kernel.signature.split()))
    # no fastmath: it would let LLVM assume that nothing is ever infinite, as masked scores are
    options: Any = {
        "device": False,
        "abi": "numba",
        "launch_bounds": (kernel.threads, kernel.resident_blocks),
    }
    capability = ARCHITECTURES[kernel.architecture] if kernel.architecture else OLDEST
    made, _ = cuda.compile(kernel.function, signature, cc=capability, **options)
    ptx = str(made)
    (entry,) = re.findall(r"\.visible \.entry (\w+)\(", ptx)
    # Numba's environment, a symbol of hundreds of characters that kernels do not use
    ptx = re.sub(r"^\.common \.global [^\n]*NumbaEnv[^\n]*\n", "", ptx, flags=re.MULTILINE)
    return ptx.replace(entry, symbol)


def assemble(ptx: str, arch: str) -> tuple[bytes, str]:
    """The cubin and what the assembler tells about it."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(arch=arch, ptxas_options=["-v"]))
    code = bytes(linker.link("cubin").code)
    return code, linker.get_info_log() or ""


def read_resources(log: str) -> Resources:
    """From the lines of ptxas -v.

    Raises: RuntimeError where they do not name the registers, or tell that products of warpgroups wait for
    each other instead of running beside other work.
    """

    def numbers(pattern: str) -> int:
        return sum(int(number) for number in re.findall(pattern, log))

    if not re.search(r"Used \d+ registers", log):
        raise RuntimeError(f"the assembler did not tell the registers: {log!r}")
    if "wgmma.mma_async instructions are serialized" in log:
        raise RuntimeError(f"the assembler keeps wgmma from running beside other work: {log!r}")
    return Resources(
        numbers(r"Used (\d+) registers"),
        numbers(r"(\d+) bytes smem"),
        numbers(r"(\d+) bytes stack frame"),
        numbers(r"(\d+) bytes spill"),
    )


def main() -> int:
    def compile_one(request: dict[str, Any]) -> None:
        spec = KernelSpec(request["module"], request["builder"], tuple(request["parameters"]))
        for cubin in compile_cubins(spec, request["archs"]):
            write_cubin(Path(request["path"]) / cubin.manifest.arch, cubin)

    answer_requests(compile_one)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
