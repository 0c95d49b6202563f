"""Bulk copies and the barriers that count them (yakvrt/cuda/device_ops/bulk_copy.py), for the emulator."""

from __future__ import annotations

import numpy as np
from cuda_emulated_async import BASE, Barrier
from cuda_emulated_memory import Pointer, Running
from cuda_emulated_ops import emulated, emulates


def first_word(pointer: Pointer, i: int, n: int = 1) -> int:
    """The word of dynamic memory where n numbers begin."""
    memory, beside = pointer.memory, Running.thread.block.beside
    if not np.shares_memory(memory.array, beside.words):
        raise Running.thread.error(
            f"copies to or multiplies {memory.name}, which is not dynamic shared memory"
        )
    return pointer.place(i, n) * memory.item_bytes // 4


@emulates
def dynamic_tiles(offset: int) -> Pointer:
    Running.thread.block.beside.base = BASE
    return Running.thread.block.dynamic(offset, np.uint32)


emulated.dynamic_u64 = lambda offset: Running.thread.block.dynamic(offset, np.uint64)


@emulates
def barrier_init(barriers: Pointer, i: int, n: int) -> None:
    assert barriers.memory.item_bytes == 8
    Running.thread.block.beside.make_barrier(first_word(barriers, i), n)


def _barrier(barriers: Pointer, i: int) -> Barrier:
    found: Barrier = Running.thread.block.beside.barrier(first_word(barriers, i))
    return found


@emulates
def barrier_expect_bytes(barriers: Pointer, i: int, n_bytes: int) -> None:
    _barrier(barriers, i).add(1, n_bytes)


@emulates
def barrier_wait(barriers: Pointer, i: int, parity: int) -> None:
    if parity not in (0, 1):
        raise Running.thread.error(f"waits for a phase of parity {parity}")
    barrier = _barrier(barriers, i)
    thread = Running.thread
    thread.wait_until("barrier_wait", lambda: barrier.phase & 1 != parity)
    thread.seen[barrier] = barrier.phase


@emulates
def copy_bulk(
    target: Pointer, i: int, source: Pointer, j: int, n_bytes: int, barriers: Pointer, barrier: int
) -> None:
    if n_bytes % 16 or n_bytes <= 0:
        raise Running.thread.error(f"copies {n_bytes} bytes at once: it must be a multiple of 16")
    target.wide(i)
    source.wide(j)
    first = first_word(target, i, n_bytes // target.memory.item_bytes)
    size = source.memory.item_bytes
    at = source.place(j, n_bytes // size)
    array = source.memory.array
    Running.thread.block.beside.copy(
        slice(first, first + n_bytes // 4),
        lambda: array[at : at + n_bytes // size].view(np.uint32),
        _barrier(barriers, barrier),
    )


@emulates
def fence_async() -> None:
    Running.thread.passed_fence()
