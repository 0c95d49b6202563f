"""Small questions to a GPU: do all cubins load, what a launch costs, how many blocks fill the link."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from cuda_cases.case import Case
from gpu_run import GpuRun, Placed

from yakvrt.cuda.device_kernels import Kernels
from yakvrt.cuda.driver import DeviceError
from yakvrt.cuda.kernel_list import all_kernels
from yakvrt.cuda.memory import DeviceMemory
from yakvrt.cuda.stream import Event, Stream
from yakvrt.kernel_build.spec import kernel

GRIDS = (1, 2, 4, 8, 12, 16, 24, 32, 64, 132)
LAUNCHES = 500  # fewer than fill the queue


def not_loaded(kernels: Kernels) -> dict[str, str]:
    """Why, of every kernel that does not load."""
    found = {}
    for spec in all_kernels(kernels.arch):
        try:
            kernels.load(spec)
        except (DeviceError, ValueError) as error:
            found[spec.symbol] = str(error)
    return found


def launch_cost(kernels: Kernels) -> dict[str, float]:
    """Of a kernel of one block that finds no rows: what asking takes the host, what it takes the device."""
    stream, start, end = Stream(), Event(), Event()
    rows = DeviceMemory(256)
    no_rows = np.zeros(32, np.int64)
    rows.upload(no_rows, stream)
    norm = kernels.load(kernel("rms_norm", "rms_norm_cuda"))
    arguments = norm.arguments(rows, 4, rows, 4, rows, 4, 1e-5, rows)
    norm.launch(stream, 1, arguments)
    stream.synchronise()
    stream.record(start)
    started = time.perf_counter()
    for _ in range(LAUNCHES):
        norm.launch(stream, 1, arguments)
    host = time.perf_counter() - started
    stream.record(end)
    end.synchronise()
    device = end.ms_since(start) / 1e3
    rows.free()
    return {
        "host_us": round(host / LAUNCHES * 1e6, 2),
        "device_us": round(device / LAUNCHES * 1e6, 2),
    }


def by_grid(run: GpuRun, case: Case, placed: Placed) -> dict[int, Any]:
    """GB/s of the case's first launch over grids of several sizes."""
    (launch, *_) = case.launches
    found = {}
    for grid in GRIDS:
        one = Case([replace(launch, grid=grid)], case.check)
        (us,) = run.microseconds(one, placed, target_ms=20)
        found[grid] = round(launch.n_bytes / us / 1e3, 1)
    return found
