"""Tensor cores, loads of their fragments and asynchronous copies, for the emulator of CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cuda_emulated_memory import Pointer, Running
from cuda_emulated_ops import emulated, emulates


def bf16_pairs(word: np.ndarray) -> np.ndarray:
    parts = np.stack([word << np.uint32(16), word & np.uint32(0xFFFF0000)], axis=-1)
    return parts.view(np.float32).astype(np.float64)


def _f16_pairs(word: np.ndarray) -> np.ndarray:
    return word[..., None].view(np.float16).astype(np.float64)


def _fragment_places() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the lanes' numbers are the elements of a [16, 16] and b [16, 8], out of [lane, word, half],
    and of c [16, 8], out of [lane, word].
    """
    a, b, c = (np.empty(shape, np.intp) for shape in ((16, 16), (16, 8), (16, 8)))
    lane = np.arange(32)
    row, column = lane // 4, lane % 4 * 2
    for e in (0, 1):
        for i, (down, right) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
            a[row + down, column + right + e] = lane * 12 + i * 2 + e
        for i in (0, 1):
            b[column + 8 * i + e, row] = lane * 12 + (4 + i) * 2 + e
            c[row + 8 * i, column + e] = lane * 4 + 2 * i + e
    return a, b, c


_A, _B, _C = _fragment_places()
_OUT = np.argsort(_C.reshape(-1))


def _mma(pairs_of: Callable[[np.ndarray], np.ndarray]) -> Callable[[list[tuple[Any, ...]]], list[Any]]:
    """Products are exact, their sum is rounded once. A GPU rounds in an order of its own."""

    def combine(given: list[tuple[Any, ...]]) -> list[Any]:
        pairs = pairs_of(np.array([values[:6] for values in given], np.uint32)).reshape(-1)
        sums = np.array([values[6:] for values in given], np.float32).reshape(-1)
        out = (pairs[_A] @ pairs[_B] + sums[_C]).astype(np.float32).reshape(-1)
        numbers = iter(out[_OUT])
        return list(zip(numbers, numbers, numbers, numbers, strict=True))

    return combine


def _define_mma(name: str, pairs_of: Callable[[np.ndarray], np.ndarray]) -> None:
    combine = _mma(pairs_of)
    setattr(emulated, name, lambda *values: Running.thread.wait("mma", values, combine))


_define_mma("mma_m16n8k16_bf16", bf16_pairs)
_define_mma("mma_m16n8k16_f16", _f16_pairs)


def _transpose(words: list[int]) -> list[int]:
    turned = np.array(words, np.uint32).view(np.uint16).reshape(8, 8).T
    return np.ascontiguousarray(turned).reshape(-1).view(np.uint32).tolist()


@emulates
def transpose_matrix(word: int) -> int:
    turned: int = Running.thread.wait("transpose_matrix", word, _transpose)
    return turned


def _mma_bytes(given: list[tuple[Any, ...]]) -> list[Any]:
    a, b, c = np.zeros((16, 32), np.int32), np.zeros((32, 8), np.int32), np.zeros((16, 8), np.int32)
    for lane, values in enumerate(given):
        row, column = lane // 4, lane % 4
        raw = np.array(values[:6], np.uint32)
        parts, signed = raw.view(np.uint8).reshape(6, 4), raw.view(np.int8).reshape(6, 4)
        for i, (down, right) in enumerate(((0, 0), (8, 0), (0, 16), (8, 16))):
            a[row + down, column * 4 + right :][:4] = parts[i]
        b[column * 4 :, row][:4], b[column * 4 + 16 :, row][:4] = signed[4], signed[5]
        c[row, column * 2 :][:2], c[row + 8, column * 2 :][:2] = values[6:8], values[8:10]
    sums = a @ b + c
    results = []
    for lane in range(32):
        row, column = lane // 4, lane % 4 * 2
        results.append((*sums[row, column:][:2].tolist(), *sums[row + 8, column:][:2].tolist()))
    return results


@emulates
def mma_m16n8k32_u8_s8(
    a0: int, a1: int, a2: int, a3: int, b0: int, b1: int, c0: int, c1: int, c2: int, c3: int
) -> Any:
    return Running.thread.wait("mma", (a0, a1, a2, a3, b0, b1, c0, c1, c2, c3), _mma_bytes)


def _load_matrix(n: int, transposed: bool) -> Callable[[Pointer, int], Any]:
    def combine(rows: list[np.ndarray | None]) -> list[tuple[int, ...]]:
        given = np.stack([row.view(np.uint16) for row in rows[: 8 * n] if row is not None])
        matrices = given.reshape(n, 8, 8).astype(np.uint32)
        if transposed:
            matrices = matrices.transpose(0, 2, 1)
        words = matrices[:, :, ::2] | matrices[:, :, 1::2] << np.uint32(16)
        return [tuple(words[:, lane // 4, lane % 4].tolist()) for lane in range(32)]

    def load(pointer: Pointer, index: int) -> Any:
        row = pointer.read16(index).copy() if Running.thread.lane < 8 * n else None
        return Running.thread.wait(f"load_matrix_x{n}", row, combine)

    return load


for _n in (2, 4):
    setattr(emulated, f"load_matrix_x{_n}", _load_matrix(_n, False))
    setattr(emulated, f"load_matrix_x{_n}_transposed", _load_matrix(_n, True))


@emulates
def copy_async(target: Pointer, i: int, source: Pointer, j: int) -> None:
    """The target is poison until the copy was waited for."""
    source.wide(j)
    target.write16(i, np.full(16, 0xFF, np.uint8))
    thread = Running.thread
    thread.copies[-1].append(lambda: target.write16(i, source.read16(j)))


@emulates
def copy_async_or_zero(target: Pointer, i: int, source: Pointer, j: int, valid: Any) -> None:
    if valid:
        copy_async(target, i, source, j)
        return
    target.write16(i, np.full(16, 0xFF, np.uint8))
    Running.thread.copies[-1].append(lambda: target.write16(i, np.zeros(16, np.uint8)))


@emulates
def copy_async_commit() -> None:
    Running.thread.copies.append([])


@emulates
def copy_async_wait(n: int) -> None:
    groups = Running.thread.copies
    while len(groups) - 1 > n:
        for copy in groups.pop(0):
            copy()
