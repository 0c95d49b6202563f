"""Follows a chain of places, each read telling the next: what one read of memory takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work

PLACE_BYTES = 128  # from one place to the next: a line of a GPU's cache


def pointer_chase_ref(chain: np.ndarray, at: int, n_steps: int) -> int:
    """The place that is reached from `at`. Shapes: chain uint32 [places, words], the next one first."""
    for _ in range(n_steps):
        at = int(chain[at, 0])
    return at


def chain_of(n_places: int, rng: np.random.Generator) -> np.ndarray:
    """One that comes by every place in random order. Shapes: uint32 [n_places, PLACE_BYTES / 4]."""
    chain = np.zeros((n_places, PLACE_BYTES // 4), np.uint32)
    order = rng.permutation(n_places)
    chain[order, 0] = np.roll(order, -1)
    return chain


def pointer_chase_cuda(g: Any) -> CudaKernel:
    """pointer_chase_ref, by one thread. Grid: one block. Shapes: place uint32 [1], where it goes on."""
    words = PLACE_BYTES // 4

    def kernel(place, chain, n_steps):  # type: ignore[no-untyped-def]
        if g.thread() == 0:
            at = g.uint32(place[0])
            for _ in range(n_steps):
                at = g.uint32(chain[g.int64(at) * words])
            place[0] = at

    return CudaKernel(kernel, "u32* u32* i32", 32, opcodes=("LDG",), work=Work("step", PLACE_BYTES))
