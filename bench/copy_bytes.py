"""A kernel that only copies memory: the floor that repacking is compared with."""

from __future__ import annotations

from typing import Any


def copy_bytes_cpu() -> Any:
    """Copies n_bytes (a multiple of 4096). Args: target, source, n_bytes."""
    from yakvrt.cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        target, source, n_bytes = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        first, last = v.share(n_bytes // 4096, thread, n_threads, 0)
        for i in range(first * 4096, last * 4096, 64):
            v.store_f32(target + i, v.load_f32(source + i))

    return kernel
