"""What a GPU can do at most, measured: copies on the device and over the link to the host, a bf16 product."""

from __future__ import annotations

from cuda_cases.case import COPY, LINK, PRODUCT
from gpu_clock import milliseconds
from gpu_cublas import cublas_tflops

from yakvrt.cuda.driver import call
from yakvrt.cuda.memory import DeviceMemory, PinnedMemory
from yakvrt.cuda.stream import Stream


def measured(n_bytes: int) -> dict[str, float | None]:
    """GB/s of copies of n_bytes, on the device bytes read and bytes written together; TFLOP/s of a product.

    None where there is no cuBLAS.
    """
    stream = Stream()
    first, second, pinned = DeviceMemory(n_bytes), DeviceMemory(n_bytes), PinnedMemory(n_bytes)
    call("cuMemsetD8Async", first.address, 0x5A, n_bytes, stream.handle)
    pinned.array[:] = 0xA5
    rates: dict[str, float | None] = {}
    copy = milliseconds(stream, lambda: second.copy_from(first.address, n_bytes, stream), 4)
    rates[COPY] = 2 * n_bytes / copy / 1e6
    rates[LINK] = n_bytes / milliseconds(stream, lambda: first.upload(pinned.array, stream), 2) / 1e6
    back = milliseconds(stream, lambda: first.download(pinned.array, stream), 2)
    rates["link to the host"] = n_bytes / back / 1e6
    for memory in (first, second, pinned):
        memory.free()
    rates[PRODUCT] = cublas_tflops(stream)
    stream.close()
    return rates
