"""Encodes a tensor in pieces on several threads, so that models larger than memory pass through."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.quantize import quantize

F32 = NDArray[np.float32]

# A multiple of every type's block length.
PIECE_LEN: Final = 1 << 20
LARGEST_F16: Final = 65504.0


def encoded(
    name: str,
    n_values: int,
    read: Callable[[int, int], F32],
    kind: str,
    pool: ThreadPoolExecutor,
    n_threads: int,
    *,
    compiled: bool,
) -> Iterator[NDArray[np.uint8]]:
    """The stored bytes of a tensor whose flat values read(start, end) gives, in order.

    Raises: ValueError naming the tensor when it holds values that the type cannot store.
    """

    def piece(start: int) -> NDArray[np.uint8]:
        values = read(start, min(start + PIECE_LEN, n_values))
        _check(name, values, kind)
        return quantize(values, kind, compiled=compiled)

    waiting: deque[Future[NDArray[np.uint8]]] = deque()
    try:
        for start in range(0, n_values, PIECE_LEN):
            waiting.append(pool.submit(piece, start))
            if len(waiting) > n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _check(name: str, values: F32, kind: str) -> None:
    largest = np.abs(values).max(initial=0.0)
    if not np.isfinite(largest):
        raise ValueError(f"tensor {name[:80]!r} holds NaN or infinite values; get the original weights anew")
    if kind == "F16" and largest > LARGEST_F16:
        raise ValueError(
            f"tensor {name[:80]!r} holds values up to {largest:.4g}; F16 ends at {LARGEST_F16:.0f}: use BF16"
        )
