"""Host memory for KV rows on a GPU: does a kernel read two chunks as one, and what does pinning take?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from cuda_cases.case import compare
from gpu_run import GpuRun

from yakvrt.cuda import pinned_pool
from yakvrt.cuda.device import Device
from yakvrt.cuda.driver import DeviceError
from yakvrt.cuda.memory import DeviceMemory
from yakvrt.cuda.pinned_pool import PinnedPool
from yakvrt.free_memory import available_memory
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.rms_norm import rms_norm_ref

NAME = "host memory pinned in chunks"
LEAST_CHUNKS, MOST_CHUNKS = 2, 4
WIDTH, EPS = 64, 1e-5


def examine_pinning(device: Device, run: GpuRun) -> dict[str, Any]:
    """Raises: Mismatch, DeviceError."""
    n_chunks = min(MOST_CHUNKS, available_memory() // 2 // pinned_pool.CHUNK_BYTES)
    n_bytes = max(n_chunks, LEAST_CHUNKS) * pinned_pool.CHUNK_BYTES
    started = time.perf_counter()
    pool = PinnedPool(device, n_bytes)
    pinned_s = time.perf_counter() - started
    try:
        row_bytes = 4 * WIDTH
        pool.take(pinned_pool.CHUNK_BYTES - row_bytes)
        part = pool.take(row_bytes // 2 + 3 * row_bytes)  # the first row lies across the end of a chunk
        rows = part.array[row_bytes // 2 :].view(np.float32).reshape(3, WIDTH)
        rows[:2] = np.random.default_rng(5).standard_normal((2, WIDTH))
        n_rows, copied = DeviceMemory(8), DeviceMemory(row_bytes)
        one = np.ones(1, np.int64)
        n_rows.upload(one, run.stream)
        norm = run.kernels.load(kernel("rms_norm", "rms_norm_cuda"))
        x, weight, out = (part.address + row_bytes // 2 + i * row_bytes for i in range(3))
        norm.launch(run.stream, 1, norm.arguments(out, WIDTH, x, WIDTH, weight, WIDTH, EPS, n_rows))
        run.stream.synchronise()
        compare("a row across two chunks", rows[2:], rms_norm_ref(rows[:1], rows[1], EPS), atol=1e-5)
        try:
            copied.upload(rows[0], run.stream)
            refused = ""
        except DeviceError as error:
            refused = str(error)
        for memory in (n_rows, copied):
            memory.free()
    finally:
        started = time.perf_counter()
        pool.free()
    return {
        "one_address": device.reads_registered,
        "gb": round(n_bytes / 1e9, 2),
        "pinned_s": round(pinned_s, 2),
        "given_back_s": round(time.perf_counter() - started, 2),
        "copies_across_chunks": refused or "allowed",
    }
