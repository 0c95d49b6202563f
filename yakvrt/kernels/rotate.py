"""The orthonormal rotation of HIGGS: Hadamard for powers of two, kron(Q_m, Hadamard) for 3, 5, 7 times those.

It spreads a row's energy evenly over its coordinates, which makes them nearly Gaussian; dot products survive.
Source: HIGGS, arXiv 2411.17525; Q_m is the orthonormal DCT-II.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LANES = 16
SMALL_FACTORS = (1, 3, 5, 7)


def rotation_factors(head_dim: int) -> tuple[int, int]:
    """(m, p) with head_dim = m * p, p a power of two of at least 16 and m one of 1, 3, 5, 7.

    Raises: ValueError.
    """
    power = head_dim & -head_dim if head_dim > 0 else 0
    if power < LANES or head_dim // power not in SMALL_FACTORS:
        raise ValueError(
            f"a head dimension of {head_dim} has no rotation: it must be 1, 3, 5 or 7 times a power of two of"
            " at least 16, so choose a KV method without HIGGS codes"
        )
    return head_dim // power, power


def small_rotation(m: int) -> np.ndarray:
    """The orthonormal DCT-II of size m, float64 [m, m]."""
    j, k = np.arange(m), np.arange(m)[:, None]
    return np.cos(np.pi * (j + 0.5) * k / m) * np.sqrt(np.where(k == 0, 1, 2) / m)


def sign_flips(head_dim: int) -> np.ndarray:
    """The fixed +-1 of every coordinate before a rotation with signs, float32 [D]; from a small generator."""
    state, signs = 20260411, np.empty(head_dim, np.float32)
    for i in range(head_dim):
        state = (state * 1664525 + 1013904223) % 2**32
        signs[i] = 1 if state >> 31 else -1
    return signs


def rotation(head_dim: int, signs: bool = False) -> np.ndarray:
    """R with y = R u, float32 [D, D].

    Raises: ValueError where a size has none.
    """
    m, power = rotation_factors(head_dim)
    hadamard = np.ones((1, 1))
    while len(hadamard) < power:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    matrix = np.kron(small_rotation(m), hadamard / np.sqrt(power))
    if signs:
        matrix = matrix * sign_flips(head_dim)
    return matrix.astype(np.float32)


def make_rotate(head_dim: int, inverse: bool = False, signs: bool = False) -> Any:
    """An inline rotate(target, source) of float32 [D]: y = R u, or u = R^T y. Works in place."""
    from ..cpu.hadamard import make_rotation

    m, power = rotation_factors(head_dim)
    flips = sign_flips(head_dim).tolist() if signs else None
    return make_rotation(power, small_rotation(m).tolist(), inverse, flips)


def rotate_cpu(head_dim: int, inverse: bool, signs: bool) -> Any:
    """Rotates rows. Args: out, out_stride, x, x_stride, n_rows*. Threads share the rows. Strides in bytes."""
    from ..cpu import vector_ops as v

    rotate = make_rotate(head_dim, inverse, signs)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, out_stride, x, x_stride = (
            v.get_i64(args),
            v.get_i64(args + 8),
            v.get_i64(args + 16),
            v.get_i64(args + 24),
        )
        first, last = v.share(v.get_i64(v.get_i64(args + 32)), thread, n_threads, 0)
        for row in range(first, last):
            rotate(out + row * out_stride, x + row * x_stride)

    return kernel
