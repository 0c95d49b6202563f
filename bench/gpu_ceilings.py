"""What a GPU can do at most, measured: copies on the device and over the link to the host, a bf16 product."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from cuda_cases.case import COPY, LINK, PRODUCT

from yakvrt.cuda.driver import call
from yakvrt.cuda.memory import DeviceMemory, PinnedMemory
from yakvrt.cuda.stream import Event, Stream

ROUNDS = 7


def milliseconds(stream: Stream, work: Callable[[], None], n: int) -> float:
    """Of one of n, the median of several rounds."""
    start, end = Event(), Event()
    work()
    times = []
    for _ in range(ROUNDS):
        stream.record(start)
        for _ in range(n):
            work()
        stream.record(end)
        end.synchronise()
        times.append(end.ms_since(start) / n)
    return statistics.median(times)


def measured(n_bytes: int) -> dict[str, float | None]:
    """GB/s of copies of n_bytes, on the device bytes read and bytes written together; TFLOP/s of a product.

    None where there is no cuBLAS.
    """
    stream = Stream()
    first, second, pinned = DeviceMemory(n_bytes), DeviceMemory(n_bytes), PinnedMemory(n_bytes)
    call("cuMemsetD8Async", first.address, 0x5A, n_bytes, stream.handle)
    pinned.array[:] = 0xA5
    rates: dict[str, float | None] = {}
    copy = milliseconds(stream, lambda: second.copy_from(first, stream), 4)
    rates[COPY] = 2 * n_bytes / copy / 1e6
    rates[LINK] = n_bytes / milliseconds(stream, lambda: first.upload(pinned.array, stream), 2) / 1e6
    back = milliseconds(stream, lambda: first.download(pinned.array, stream), 2)
    rates["link to the host"] = n_bytes / back / 1e6
    for memory in (first, second, pinned):
        memory.free()
    stream.close()
    rates[PRODUCT] = cublas_tflops()
    return rates


def cublas_tflops(n_tokens: int = 4096, n_outputs: int = 14336, n_cols: int = 4096) -> float | None:
    """Of [n_tokens, n_cols] @ [n_cols, n_outputs] in bfloat16, by torch."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    x = torch.randn(n_tokens, n_cols, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(n_outputs, n_cols, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(ROUNDS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(5):
            torch.nn.functional.linear(x, weight)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 5)
    return 2 * n_tokens * n_outputs * n_cols / statistics.median(times[3:]) / 1e9
