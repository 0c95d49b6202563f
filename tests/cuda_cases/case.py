"""A case of CUDA kernels: launches over numpy arrays, what they have to leave, what they have to move.

The tests run cases in the emulator at small sizes, bench/bench_gpu.py on a GPU at real ones. Nothing here
needs more than numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from yakvrt.kernel_build.spec import KernelSpec

# what a launch's time is compared with: rates measured in the same run
COPY, LINK, PRODUCT = "device copy", "host link", "bf16 product"


@dataclass(frozen=True)
class Launch:
    """`arguments` hold arrays for pointers; an array that occurs again, also in a later launch, is the same
    memory. `outputs` are the arrays that are written; they are poisoned.

    `n_bytes` and `n_operations`: what the launch cannot do without; `limit`: the ceiling that counts.
    """

    kernel: KernelSpec
    grid: int | tuple[int, int]
    outputs: Sequence[np.ndarray]
    arguments: tuple[Any, ...]
    n_bytes: int = 0
    n_operations: int = 0
    limit: str = COPY


@dataclass(frozen=True)
class Case:
    """`check` compares the outputs with the truth: the largest error as a part of what is allowed.

    `pinned`: arrays that lie in host memory.
    """

    launches: Sequence[Launch]
    check: Callable[[], float]
    pinned: Sequence[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Sized:
    """A case to be made: inputs of real sizes take a while. `arch`: the only one that has its kernels."""

    name: str
    make: Callable[[], Case]
    arch: str | None = None


def sized(name: str, family: Callable[..., Case], *sizes: Any) -> Sized:
    return Sized(name, partial(family, *sizes))


class Mismatch(AssertionError):
    """Outputs that are not what the truth says."""


def compare(what: str, found: np.ndarray, expected: np.ndarray, rtol: float = 0, atol: float = 0) -> float:
    """The largest |found - expected| as a part of atol + rtol * |expected|.

    Raises: Mismatch where it is above 1, or something is no number.
    """
    found = found.reshape(expected.shape)
    if found.dtype.kind in "iub" and rtol == atol == 0:
        wrong = np.flatnonzero(found.reshape(-1) != expected.reshape(-1))
        if len(wrong):
            at = np.unravel_index(wrong[0], found.shape)
            place = [int(i) for i in at]
            raise Mismatch(
                f"{what}: {len(wrong)} of {found.size} differ, first {place}: {found[at]} for {expected[at]}"
            )
        return 0.0
    off = np.abs(found.astype(np.float64) - expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(off == 0, 0, off / (atol + rtol * np.abs(expected)))
    parts = np.where(np.isnan(parts), np.inf, parts)
    worst = float(parts.max(initial=0))
    if worst > 1:
        at = np.unravel_index(int(parts.argmax()), parts.shape)
        raise Mismatch(
            f"{what}: {np.count_nonzero(parts > 1)} of {parts.size} are off, most {[int(i) for i in at]}:"
            f" {found[at]} for {expected[at]}, {worst:.3g} times what is allowed"
        )
    return worst


def untouched(what: str, array: np.ndarray) -> float:
    """Raises: Mismatch unless poison is all that it holds."""
    poison = np.isnan(array) if array.dtype.kind == "f" else array == poison_of(array.dtype)
    if not poison.all():
        raise Mismatch(f"{what}: {np.count_nonzero(~poison)} numbers were written that must not be")
    return 0.0


def written(what: str, array: np.ndarray) -> float:
    """Raises: Mismatch where something is no number, as poison is."""
    if not (n_left := int(np.isnan(array).sum())):
        return 0.0
    raise Mismatch(f"{what}: {n_left} of {array.size} were not written, or are no numbers")


def poison_of(dtype: Any) -> Any:
    """-7 of signed integers, bytes of 0xCD of others."""
    dtype = np.dtype(dtype)
    return -7 if dtype.kind == "i" else int.from_bytes(b"\xcd" * dtype.itemsize, "little")
