"""Builds and runs CUDA kernels in the emulator, for the tests of kernels."""

from __future__ import annotations

from typing import Any

import cuda_emulated_warpgroup  # noqa: F401 (adds to the vocabulary)
import numpy as np
from cuda_cases.arrays import blocks, count, poisoned
from cuda_cases.case import Case
from cuda_emulated_ops import emulated
from cuda_emulator import launch as emulate

from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.cuda_kernel import CudaKernel

__all__ = ["blocks", "count", "emulated", "emulated_kernel", "poisoned", "run_kernel", "solve"]

SEEDS = (None, 1)  # threads in order, and shuffled


def emulated_kernel(op: str, builder: str, *parameters: Any) -> CudaKernel:
    """The kernel of yakvrt/kernels/<op>.py over the emulated vocabulary."""
    built: CudaKernel = kernel(op, builder, *parameters).build(emulated)
    return built


def run_kernel(
    built: CudaKernel, grid: int | tuple[int, int], outputs: list[np.ndarray], *arguments: Any
) -> None:
    """Runs a kernel whose parameters hold the arrays `outputs`, threads in order, then shuffled: both must
    leave the same bytes. The outputs hold what they held before each run; poison them.
    """
    before = [output.copy() for output in outputs]
    results = []
    for seed in SEEDS:
        for output, held in zip(outputs, before, strict=True):
            output[...] = held
        emulate(built, grid, *arguments, seed=seed)
        results.append([output.tobytes() for output in outputs])
    assert results[0] == results[1], "the result depends on the order of threads"


def solve(case: Case) -> None:
    """Runs a case in the emulator and compares it with its truth."""
    for launch in case.launches:
        built = launch.kernel.build(emulated)
        run_kernel(built, launch.grid, list(launch.outputs), *launch.arguments)
    case.check()
