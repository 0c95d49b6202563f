"""Builds and runs CUDA kernels in the emulator, for the tests of kernels."""

from __future__ import annotations

from typing import Any

import cuda_emulated_tensor  # noqa: F401 (adds to the vocabulary)
import numpy as np
from cuda_emulated_ops import emulated
from cuda_emulator import launch

from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.cuda_kernel import CudaKernel

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
        launch(built, grid, *arguments, seed=seed)
        results.append([output.tobytes() for output in outputs])
    assert results[0] == results[1], "the result depends on the order of threads"


def poisoned(*shape: int) -> np.ndarray:
    """A float32 array full of NaN: an output that is not written shows."""
    return np.full(shape, np.nan, np.float32)


def count(n: int) -> np.ndarray:
    """A row count as kernels read it."""
    return np.array([n], np.int64)


def blocks(n: int, per_block: int) -> int:
    return -(-n // per_block)
