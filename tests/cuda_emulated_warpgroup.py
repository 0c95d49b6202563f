"""Products of warpgroups (yakvrt/cuda/device_ops/warpgroup.py), for the emulator of CUDA kernels.

Operands are found from the bits of their descriptors, as PTX says. They are multiplied at once, since nobody
may change them before the products were waited for; the sums come to the threads behind that wait.

Source: PTX ISA 9.0, wgmma: matrix descriptor, K-major 128-byte swizzle, fragments of m64nNk16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from cuda_emulated_bulk import first_word
from cuda_emulated_memory import Pointer, Running
from cuda_emulated_ops import emulated, emulates
from cuda_emulated_tensor import bf16_pairs
from cuda_emulator import WARPGROUP

COLUMNS = 16  # of a product


class _UnderWay:
    """What a sum holds while products change it."""

    def __float__(self) -> float:
        raise Running.thread.error("reads a sum of products that were not finished")

    __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = __float__  # type: ignore[assignment]


UNDER_WAY = _UnderWay()


class Product:
    """Reads words of shared memory; changes every thread's `sums`, whose numbers lie in `held` meanwhile."""

    def __init__(self, words: np.ndarray, sums: list[Any], held: np.ndarray) -> None:
        self.words, self.sums, self.held = words, sums, held


def operand_words(descriptor: int, n_rows: int, base: int) -> np.ndarray:
    """The words of 16 contiguous numbers of every row, [rows, 8], counted from the dynamic memory's first."""
    error = Running.thread.error
    address, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    swizzle, tile_offset = descriptor >> 62, descriptor >> 49 & 7
    if swizzle != 1 or tile_offset or descriptor & (0b11 << 14 | 0b11 << 30 | 0b111 << 46 | 0x3FF << 52):
        raise error(
            f"multiplies by the descriptor {descriptor:#x}, which is not of a 128-byte swizzle at offset 0"
        )
    if address & 0b111 << 7:
        raise error(f"multiplies what begins at byte {address}, whose tile is not aligned to 1024 bytes")
    row, piece = np.arange(n_rows)[:, None], np.arange(2)
    places = address + row % 8 * 128 + row // 8 * stride + piece * 16
    places ^= (places >> 7 & 7) << 4
    words = (places[:, :, None] - base) // 4 + np.arange(4)
    return words.reshape(n_rows, 8)


@cache
def _fragments(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of sum i of thread t, [t, i]."""
    thread, i = np.arange(WARPGROUP)[:, None], np.arange(n // 2)
    row = thread // 32 * 16 + i // 2 % 2 * 8 + thread % 32 // 4
    return row, i // 4 * 8 + thread % 4 * 2 + i % 2


def _all_equal(values: list[Any]) -> bool:
    return values.count(values[0]) == len(values)


def _mma(n: int) -> Callable[[Any, int, int], None]:
    fragments = _fragments(n)

    def combine(given: list[tuple[Any, int, int]]) -> list[None]:
        first = Running.thread
        block, error = first.block, first.error
        threads = block.threads[first.number : first.number + WARPGROUP]
        sums = [values[0] for values in given]
        if not all(thread.fenced for thread in threads):
            raise error("multiplies without warpgroup_fence")
        if not _all_equal([values[1:] for values in given]):
            raise error("multiplies by other descriptors than the rest of its warpgroup")
        _, a, b = given[0]
        down, across = (operand_words(x, rows, block.beside.base) for x, rows in ((a, 64), (b, n)))
        words = np.concatenate([down.reshape(-1), across.reshape(-1)])
        if words.min() < 0 or words.max() >= len(block.beside.words):
            raise error("multiplies what lies outside of dynamic memory")
        block.beside.begin_product(words, threads)
        running = [product for group in first.products for product in group if product.sums[0] is sums[0]]
        if running:
            held = running[-1].held
        else:
            held = np.empty((64, n), np.float32)
            held[fragments] = [list(values.values()) for values in sums]
            for values in sums:
                values.hide(UNDER_WAY)
        factors = [
            bf16_pairs(block.beside.words[part]).reshape(len(part), COLUMNS) for part in (down, across)
        ]
        held[...] = held + factors[0] @ factors[1].T
        product = Product(words, sums, held)
        for thread in threads:
            thread.products[-1].append(product)
        return [None] * WARPGROUP

    def mma(sums: Any, a: int, b: int) -> None:
        if len(sums) != n // 2:
            raise Running.thread.error(f"gives {len(sums)} sums to a product that has {n // 2}")
        Running.thread.wait(f"warpgroup_mma_n{n}", (sums, a, b), combine, WARPGROUP)

    return mma


emulated.warpgroup_mma_n128, emulated.warpgroup_mma_n256 = _mma(128), _mma(256)


@emulates
def warpgroup_fence() -> None:
    Running.thread.fenced = True


@emulates
def warpgroup_commit() -> None:
    Running.thread.products.append([])


def _ended(n: int) -> list[Product]:
    """Products of this thread's groups but the last n, which it knows to have ended."""
    groups, ended = Running.thread.products, []
    while len(groups) - 1 > n:
        ended += groups.pop(0)
    return ended


def _end(given: list[list[Product]]) -> list[None]:
    if not _all_equal(given):
        raise Running.thread.error("waits for other products than the rest of its warpgroup")
    for product in given[0]:
        Running.thread.block.beside.end_product(product.words)
    return [None] * WARPGROUP


@emulates
def warpgroup_wait(n: int) -> None:
    Running.thread.wait("warpgroup_wait", _ended(n), _end, WARPGROUP)


@emulates
def warpgroup_finish(sums: Any, n: int) -> None:
    thread = Running.thread
    ended = _ended(0)
    own = [product for product in ended if product.sums[thread.number % WARPGROUP] is sums]
    thread.wait("warpgroup_finish", ended, _end, WARPGROUP)
    thread.fenced = False
    if not own or any(group for group in thread.products):
        return
    row, column = (place[thread.number % WARPGROUP] for place in _fragments(2 * n))
    sums.show(UNDER_WAY, list(own[-1].held[row, column]))


@emulates
def shared_byte(pointer: Pointer, index: int) -> int:
    return int(Running.thread.block.beside.base + 4 * first_word(pointer, index))
