"""A kernel that only reads memory: the floor that matmul kernels are compared with."""

from __future__ import annotations

from typing import Any


def read_bytes_cpu() -> Any:
    """Sums n_bytes (a multiple of 4096) of memory. Args: memory, n_bytes, out (16 floats a thread)."""
    from yakvrt.cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        memory, n_bytes, out = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        first, last = v.share(n_bytes // 4096, thread, n_threads, 0)
        a, b, c, d = v.zero(), v.zero(), v.zero(), v.zero()
        for i in range(memory + first * 4096, memory + last * 4096, 256):
            a = v.add(a, v.load_f32(i))
            b = v.add(b, v.load_f32(i + 64))
            c = v.add(c, v.load_f32(i + 128))
            d = v.add(d, v.load_f32(i + 192))
        v.store_f32(out + thread * 64, v.add(v.add(a, b), v.add(c, d)))

    return kernel
