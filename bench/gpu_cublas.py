"""How fast cuBLAS multiplies in bfloat16: the ceiling of matmuls on tensor cores.

Through torch where it is installed, else through nvmath.bindings.
"""

from __future__ import annotations

import statistics

import numpy as np
from cuda_cases.arrays import normal, to_bf16
from gpu_clock import ROUNDS, milliseconds

from yakvrt.cuda.memory import DeviceMemory
from yakvrt.cuda.stream import Stream

# a prompt of 4096 tokens through the up projection of Llama-3.1-8B
TOKENS, OUTPUTS, COLUMNS = 4096, 14336, 4096
OPERATIONS = 2 * TOKENS * OUTPUTS * COLUMNS
AT_ONCE = 5
# of cublasGemmEx: operations, data types, the type of sums, the algorithm that it chooses
PLAIN, TRANSPOSED, BF16, SUMS_F32, DEFAULT = 0, 1, 14, 68, -1


def cublas_tflops(stream: Stream) -> float | None:
    """Of [TOKENS, COLUMNS] @ [COLUMNS, OUTPUTS]; None where there is no cuBLAS."""
    try:
        ms = _by_torch()
    except (OSError, RuntimeError):  # a torch that does not know this GPU
        ms = None
    if ms is None:
        ms = _by_nvmath(stream)
    return OPERATIONS / ms / 1e9 if ms else None


def _by_torch() -> float | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    x = torch.randn(TOKENS, COLUMNS, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(OUTPUTS, COLUMNS, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(ROUNDS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(AT_ONCE):
            torch.nn.functional.linear(x, weight)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / AT_ONCE)
    del x, weight
    torch.cuda.empty_cache()
    return statistics.median(times[2:])


def _by_nvmath(stream: Stream) -> float | None:
    try:
        from nvmath.bindings import cublas

        handle = cublas.create()
    except (ImportError, RuntimeError):  # no package, or no libcublas
        return None
    cublas.set_stream(handle, int(stream.handle))
    weight, x = (to_bf16(normal(rows, COLUMNS)) for rows in (OUTPUTS, TOKENS))
    given = [DeviceMemory(array.nbytes) for array in (weight, x)]
    for memory, array in zip(given, (weight, x), strict=True):
        memory.upload(array, stream)
    out, factors = DeviceMemory(2 * TOKENS * OUTPUTS), np.array([1, 0], np.float32)
    alpha, beta = factors.ctypes.data, factors.ctypes.data + 4
    product = (handle, TRANSPOSED, PLAIN, OUTPUTS, TOKENS, COLUMNS, alpha)
    operands = (given[0].address, BF16, COLUMNS, given[1].address, BF16, COLUMNS)
    result = (beta, out.address, BF16, OUTPUTS, SUMS_F32, DEFAULT)
    ms = milliseconds(stream, lambda: cublas.gemm_ex(*product, *operands, *result), AT_ONCE)
    for memory in (*given, out):
        memory.free()
    cublas.destroy(handle)
    return ms
