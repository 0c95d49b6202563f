"""Cubins without code, of kernels that a FakeGpu knows by their names."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from cuda_emulated_shortcuts import shortened
from cuda_kernel import emulated

from yakvrt.cuda.cubin import Cubin, Manifest, Resources, kernel_sources, write_cubin
from yakvrt.kernel_build.spec import KernelSpec
from yakvrt.kernels.cuda_kernel import CudaKernel

WRITTEN: dict[str, KernelSpec] = {}  # the kernels of all fake cubins


def built(symbol: str) -> CudaKernel | None:
    """The kernel of this name over the emulated vocabulary; None where no cubin of it was written."""
    return WRITTEN[symbol].build(shortened) if symbol in WRITTEN else None


def write_fake_cubin(
    directory: Path, spec: KernelSpec, arch: str = "sm_90a", made_by: str = "13.0.88"
) -> None:
    """A FakeGpu knows the kernel from then on."""
    WRITTEN[spec.symbol] = spec
    kernel, code = spec.build(emulated), b"no code of any machine"
    manifest = Manifest(
        spec.symbol,
        arch,
        kernel.parameters(),
        kernel.threads,
        kernel.shared_bytes,
        list(kernel.opcodes),
        asdict(kernel.work) if kernel.work else None,
        Resources(32, 0, 0, 0),
        None,
        kernel_sources(),
        f"nvidia-nvjitlink {made_by}",
        hashlib.sha256(code).hexdigest(),
    )
    (directory / arch).mkdir(parents=True, exist_ok=True)
    write_cubin(directory / arch, Cubin(manifest, code))
