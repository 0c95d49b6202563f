"""Encodes a tensor in pieces on several threads, so that models larger than memory pass through."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gguf_tools.dequantize import dequantize
from gguf_tools.dequantize_compiled import WORTH_FROM, available, compiled_decoder
from gguf_tools.formats import Format
from gguf_tools.quantize import COMPILED_FROM, quantize
from gguf_tools.quantize_k import K_ENCODERS
from gguf_tools.quantize_kernels import lane_kernels

F32 = NDArray[np.float32]

# A multiple of every type's block length.
PIECE_LEN: Final = 1 << 20
LARGEST_F16: Final = 65504.0
# The bits of infinity; with the sign taken off NaN lies above, every number below.
_INFINITIES: Final = MappingProxyType({"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80})


@dataclass(frozen=True, slots=True)
class Workers:
    """Threads that decode and encode, and which of these two is compiled."""

    pool: ThreadPoolExecutor
    n_threads: int
    decoding_compiled: bool
    search_compiled: bool


@contextmanager
def encoding_workers(n_threads: int, work: Iterable[tuple[Format, Format, int]]) -> Iterator[Workers]:
    """Threads for tensors described as (stored type, new type, values).

    Whatever is worth compiling is compiled here, before several threads ask for it at once.
    """
    counted = [(source, target, n) for source, target, n in work if source is not target]
    decoded = sum(n for source, _, n in counted if available(source.name))
    searched = sum(n for _, target, n in counted if target.name in K_ENCODERS)
    decoding_compiled, search_compiled = decoded >= WORTH_FROM, searched >= COMPILED_FROM
    if decoding_compiled:
        for name in {source.name for source, _, _ in counted if available(source.name)}:
            compiled_decoder(name)
    if search_compiled:
        lane_kernels(compiled=True)
    with ThreadPoolExecutor(n_threads) as pool:
        yield Workers(pool, n_threads, decoding_compiled, search_compiled)


def encoded(
    name: str, data: NDArray[np.uint8], source: Format, kind: str, workers: Workers
) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a tensor, stored as `source`, in the type `kind`, in order.

    Raises: ValueError naming the tensor when it holds values that the type cannot store.
    """
    every = data.reshape(-1, source.block_bytes)
    step = PIECE_LEN // source.block_len

    def piece(start: int) -> NDArray[np.uint8]:
        stored = every[start : start + step]
        if source.name == kind and kind in _INFINITIES:
            _check_bits(name, stored, kind)
            return stored
        values = dequantize(stored, source.name, compiled=workers.decoding_compiled).reshape(-1)
        _check(name, values, kind)
        try:
            return quantize(values, kind, compiled=workers.search_compiled)
        except ValueError as error:
            raise ValueError(f"{name[:80]}: {error}") from None

    waiting: deque[Future[NDArray[np.uint8]]] = deque()
    try:
        for start in range(0, len(every), step):
            waiting.append(workers.pool.submit(piece, start))
            if len(waiting) > workers.n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _check_bits(name: str, stored: NDArray[np.uint8], kind: str) -> None:
    bits = np.ascontiguousarray(stored).reshape(-1).view("<u4" if kind == "F32" else "<u2")
    unsigned = bits & bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    if unsigned.max(initial=0) >= _INFINITIES[kind]:
        raise _not_finite(name)


def _not_finite(name: str) -> ValueError:
    return ValueError(f"tensor {name[:80]!r} holds NaN or infinite values; get the original weights anew")


def _check(name: str, values: F32, kind: str) -> None:
    largest = np.abs(values).max(initial=0.0)
    if not np.isfinite(largest):
        raise _not_finite(name)
    if kind == "F16" and largest > LARGEST_F16:
        raise ValueError(
            f"tensor {name[:80]!r} holds values up to {largest:.4g}; F16 ends at {LARGEST_F16:.0f}: use BF16"
        )
