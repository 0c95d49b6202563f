"""out[b] = x[rows[b]]: a kernel whose order of rows shows a missing barrier, for the tests of the team."""

from __future__ import annotations

from typing import Any

from yakvrt.kernel_build.spec import KernelSpec

TAKE_ROWS = KernelSpec("take_rows", "take_rows_cpu")


def take_rows_cpu() -> Any:
    """Args: out, out_stride, x, x_stride, width (multiple of 16), rows (int64), n_rows*."""
    from yakvrt.cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, out_stride = v.get_i64(args), v.get_i64(args + 8)
        x, x_stride = v.get_i64(args + 16), v.get_i64(args + 24)
        width, rows, n_rows = v.get_i64(args + 32), v.get_i64(args + 40), v.get_i64(v.get_i64(args + 48))
        first, last = v.share(n_rows, thread, n_threads, 0)
        for row in range(first, last):
            source = x + v.get_i64(rows + row * 8) * x_stride
            for i in range(0, width * 4, 64):
                v.store_f32(out + row * out_stride + i, v.load_f32(source + i))

    return kernel
