"""The orthonormal rotation of HIGGS: Hadamard for powers of two, kron(Q_m, Hadamard) for 3, 5, 7 times those.

It spreads a row's energy evenly over its coordinates, which makes them nearly Gaussian; dot products survive.
Source: HIGGS, arXiv 2411.17525; Q_m is the orthonormal DCT-II.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work

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


@cache
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


def make_rotate_registers(g: Any, head_dim: int, inverse: bool, signs: bool) -> Any:
    """An inline rotate(held, lane) of the numbers that rotation_lanes(head_dim) neighbouring lanes hold.

    Of part j (of m, p numbers each) lane l of them holds in held[j * n + 4 * k + e] the number
    (k * lanes + l) * 4 + e; n is p / lanes.
    """
    m, power = rotation_factors(head_dim)
    lanes = rotation_lanes(head_dim)
    n = power // lanes
    n_steps, n_pairs = lanes.bit_length() - 1, (n // 4).bit_length() - 1
    small = small_rotation(m) / np.sqrt(power)
    factor = g.constants((small.T if inverse else small).reshape(-1).tolist())
    flip = g.constants(sign_flips(head_dim).tolist())

    @g.inline
    def change_signs(held, lane):  # type: ignore[no-untyped-def]
        for j in range(m):
            for i in range(n):
                held[j * n + i] *= flip(j * power + (i // 4 * lanes + lane) * 4 + i % 4)

    @g.inline
    def pair(held, n_held, step):  # type: ignore[no-untyped-def]
        """Sums and differences of numbers `step` registers apart."""
        for i in range(n_held):
            if i & step == 0:
                a, b = held[i], held[i + step]
                held[i], held[i + step] = a + b, a - b

    @g.inline
    def rotate(held, lane):  # type: ignore[no-untyped-def]
        if signs and not inverse:
            change_signs(held, lane)
        pair(held, m * n, 1)
        pair(held, m * n, 2)
        for i in range(m * n):
            for k in range(n_steps):
                other = g.shuffle_xor(held[i], 1 << k)
                held[i] = other - held[i] if lane >> k & 1 else other + held[i]
        for k in range(n_pairs):
            pair(held, m * n, 4 << k)
        for i in range(n):
            mixed = g.local_f32(m)
            for j in range(m):
                mixed[j] = factor(j * m) * held[i]
                for other in range(1, m):
                    mixed[j] += factor(j * m + other) * held[other * n + i]
            for j in range(m):
                held[j * n + i] = mixed[j]
        if signs and inverse:
            change_signs(held, lane)

    return rotate


def rotation_lanes(head_dim: int) -> int:
    """Lanes that share a row on a GPU, each with 4 neighbouring numbers of every part, or more."""
    _, power = rotation_factors(head_dim)
    return min(power // 4, 32)


def rotate_cuda(g: Any, head_dim: int, inverse: bool, signs: bool) -> CudaKernel:
    """Rotates rows, strides in numbers and multiples of 4. Works in place.

    Grid: blocks of 4 * 32 / rotation_lanes(head_dim) rows.
    """
    m, power = rotation_factors(head_dim)
    lanes, threads = rotation_lanes(head_dim), 128
    n, n_held = power // lanes, head_dim // lanes
    rotate = make_rotate_registers(g, head_dim, inverse, signs)

    def kernel(out, out_stride, x, x_stride, n_rows):  # type: ignore[no-untyped-def]
        row = g.int64(g.block()) * (threads // lanes) + g.thread() // lanes
        lane = g.int32(g.thread() % lanes)
        here = row < n_rows[0]
        held = g.local_f32(n_held)
        for j in range(m):
            for i in range(0, n, 4):
                a, b, c, d = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
                if here:
                    a, b, c, d = g.load_f32x4(x, row * x_stride + j * power + i * lanes + lane * 4)
                at = j * n + i
                held[at], held[at + 1], held[at + 2], held[at + 3] = a, b, c, d
        rotate(held, lane)
        for j in range(m):
            for i in range(0, n, 4):
                at = j * n + i
                if here:
                    place = row * out_stride + j * power + i * lanes + lane * 4
                    g.store_f32x4(out, place, held[at], held[at + 1], held[at + 2], held[at + 3])

    return CudaKernel(
        kernel,
        "f32* i32 f32* i32 i64*",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("row", 8 * head_dim, head_dim * (power.bit_length() - 1 + 2 * m)),
    )
