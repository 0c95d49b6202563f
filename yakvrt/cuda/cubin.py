"""Compiled CUDA kernels on disk: a cubin and, beside it, a manifest with all that launching it takes.

A manifest names the cubin's hash, so a pair that two processes mixed up, or half a file, counts as missing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from ..kernel_build.directory import sources_digest
from ..kernel_build.spec import KernelSpec
from ..whole_file import write_whole


@dataclass(frozen=True, slots=True)
class Resources:
    """What the assembler says a thread (registers, stack, spills) and a block (shared memory) take.

    Units: registers of 4 bytes; bytes.
    """

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """`parameters`: name and type of each; this and the rest up to `work` as in cuda_kernel.py.

    `instructions`: how often each occurs in the code, None where no disassembler told.
    """

    symbol: str
    arch: str
    parameters: dict[str, str]
    threads: int
    shared_bytes: int
    opcodes: list[str]
    work: dict[str, str | int] | None
    resources: Resources
    instructions: dict[str, int] | None
    sources: str
    compilers: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Cubin:
    manifest: Manifest
    code: bytes


# what a cubin is made of
SOURCES = ("kernels/*.py", "cuda/device_ops/*.py", "cuda/compile.py")


@cache
def kernel_sources() -> str:
    return sources_digest(SOURCES)


def write_cubin(directory: Path, cubin: Cubin) -> None:
    """Raises: OSError."""
    path = directory / cubin.manifest.symbol
    write_whole(path.with_suffix(".cubin"), cubin.code)
    write_whole(path.with_suffix(".json"), json.dumps(asdict(cubin.manifest), indent=1).encode())


def read_cubin(directory: Path, symbol: str) -> Cubin | None:
    """None where there is none or it is damaged."""
    path = directory / symbol
    try:
        code = path.with_suffix(".cubin").read_bytes()
        held = json.loads(path.with_suffix(".json").read_bytes())
        found = Manifest(**{**held, "resources": Resources(**held["resources"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = found.symbol == symbol and hashlib.sha256(code).hexdigest() == found.sha256
    return Cubin(found, code) if whole and set(held) == {f.name for f in fields(Manifest)} else None


def load_cubin(directory: Path, spec: KernelSpec, arch: str) -> Cubin:
    """A cubin of a directory that `yakvrt kernels build -o` made, to be launched on a device of `arch`.

    Raises: ValueError where it is missing, damaged, for another architecture or of other sources.
    """
    remedy = f"run python -m yakvrt kernels build --arch {arch} -o {directory}"
    cubin = read_cubin(directory / arch, spec.symbol)
    if cubin is None:
        raise ValueError(f"{directory / arch} holds no whole cubin of the kernel {spec.symbol}: {remedy}")
    if cubin.manifest.arch != arch:
        raise ValueError(f"{directory / arch} holds a cubin for {cubin.manifest.arch}: {remedy}")
    if cubin.manifest.sources != kernel_sources():
        raise ValueError(f"{directory / arch} holds cubins of another version of yakvrt: {remedy}")
    return cubin
