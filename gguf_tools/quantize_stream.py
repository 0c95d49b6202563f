"""Encodes a tensor in pieces on several threads, so that models larger than memory pass through."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.dequantize import dequantize
from gguf_tools.formats import Format
from gguf_tools.quantize import COMPILED_FROM, quantize
from gguf_tools.quantize_k import K_ENCODERS
from gguf_tools.quantize_kernels import lane_kernels
from gguf_tools.writer import TensorPlan

F32 = NDArray[np.float32]

# A multiple of every type's block length.
PIECE_LEN: Final = 1 << 20
LARGEST_F16: Final = 65504.0


def encoded(
    name: str,
    data: NDArray[np.uint8],
    source: Format,
    kind: str,
    pool: ThreadPoolExecutor,
    n_threads: int,
    *,
    compiled: bool,
) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a tensor, stored as `source`, in the type `kind`, in order.

    Raises: ValueError naming the tensor when it holds values that the type cannot store.
    """
    every = data.reshape(-1, source.block_bytes)
    step = PIECE_LEN // source.block_len

    def piece(start: int) -> NDArray[np.uint8]:
        values = dequantize(every[start : start + step], source.name).reshape(-1)
        _check(name, values, kind)
        try:
            return quantize(values, kind, compiled=compiled)
        except ValueError as error:
            raise ValueError(f"{name[:80]}: {error}") from None

    waiting: deque[Future[NDArray[np.uint8]]] = deque()
    try:
        for start in range(0, len(every), step):
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


def worth_compiling(plans: Sequence[TensorPlan]) -> bool:
    """Whether so much is to be encoded that compiling the search first pays; compiles it if so."""
    if sum(math.prod(plan.shape) for plan in plans if plan.format.name in K_ENCODERS) < COMPILED_FROM:
        return False
    lane_kernels(compiled=True)  # here, before several threads ask for it at once
    return True
