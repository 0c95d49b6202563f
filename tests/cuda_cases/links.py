"""What times a link: rows gathered over it, a chain of reads, arithmetic beside it."""

from __future__ import annotations

import numpy as np

from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.gather_rows import gather_rows_ref
from yakvrt.kernels.multiply_adds import multiply_adds_ref
from yakvrt.kernels.pointer_chase import PLACE_BYTES, chain_of, pointer_chase_ref

from .arrays import RNG, normal, poisoned
from .case import LINK, PRODUCT, Case, Launch, Sized, compare, sized, untouched


def gathered_rows(loads: int, grid: int, n_pool: int, row_bytes: int, n_rows: int) -> Case:
    """A row too many, which stays."""
    source = RNG.integers(0, 1 << 32, (n_pool, row_bytes // 4), np.uint32)
    ids = RNG.integers(0, n_pool, n_rows, np.int32)
    out = poisoned(n_rows + 1, row_bytes // 4, dtype=np.uint32)
    launch = Launch(
        kernel("gather_rows", "gather_rows_cuda", loads),
        grid,
        [out],
        (out, source, ids, n_rows, row_bytes // 16),
        n_rows * row_bytes,
        limit=LINK,
    )

    def check() -> float:
        untouched("a further row", out[n_rows:])
        return compare("rows", out[:n_rows], gather_rows_ref(source, ids))

    return Case([launch], check, pinned=[source])


def chase(n_places: int, n_steps: int) -> Case:
    chain, place = chain_of(n_places, RNG), poisoned(2, dtype=np.uint32)
    place[0] = n_places // 2
    expected = pointer_chase_ref(chain, n_places // 2, n_steps)
    launch = Launch(
        kernel("pointer_chase", "pointer_chase_cuda"),
        1,
        [place],
        (place, chain, n_steps),
        n_steps * PLACE_BYTES,
        limit=LINK,
    )

    def check() -> float:
        untouched("behind the place", place[1:])
        return compare("place", place[:1], np.array([expected], np.uint32))

    return Case([launch], check, pinned=[chain])


def arithmetic(grid: int, n_times: int) -> Case:
    x = normal(256 * grid, scale=100)
    expected = multiply_adds_ref(x, n_times)
    launch = Launch(
        kernel("multiply_adds", "multiply_adds_cuda"),
        grid,
        [x],
        (x, n_times),
        8 * x.size,
        2 * n_times * x.size,
        limit=PRODUCT,
    )
    return Case([launch], lambda: compare("x", x, expected))


def small() -> list[Sized]:
    return [
        sized("gathered rows of 16 bytes", gathered_rows, 1, 2, 300, 16, 261),
        sized("gathered rows of 144 bytes", gathered_rows, 4, 1, 9, 144, 70),
        sized("a chain of reads", chase, 5, 12),
        sized("multiplications in registers", arithmetic, 2, 3),
    ]


def real() -> list[Sized]:
    return [
        sized("8192 rows of 128 bytes over the link", gathered_rows, 4, 16, 1 << 20, 128, 8192),
        sized("a chain of 1000 reads over the link", chase, 1 << 16, 1000),
    ]
