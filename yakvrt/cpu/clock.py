"""The system's clocks, and the core's counter of time, as kernels read them."""

from __future__ import annotations

import time
from typing import Any

from llvmlite import ir
from numba.core import types

from . import simd
from .vector_ops import get_i64, inline

WALL = time.CLOCK_MONOTONIC
OWN = time.CLOCK_THREAD_CPUTIME_ID  # what the calling thread has run

# clock_gettime(clock, address of two int64: seconds and nanoseconds)
clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))


@inline
def nanoseconds(which: int, answer: int) -> int:
    """answer: the address of two words, which are overwritten."""
    clock_gettime(which, answer)
    return get_i64(answer) * 1_000_000_000 + get_i64(answer + 8)  # type: ignore[no-any-return]


@simd.op(types.int64)
def _counter(b: Any) -> Any:
    return b.call(simd.declare(b, "llvm.readcyclecounter", ir.IntType(64), []), [])


@inline
def _counter_of_core(answer: int) -> int:
    return _counter()  # type: ignore[no-any-return]


@inline
def _nanoseconds_of_wall(answer: int) -> int:
    return nanoseconds(WALL, answer)  # type: ignore[no-any-return]


# Ticks of a counter with a constant rate: x86's time-stamp counter, read in less than half the time of the
# clock, which stands in for it elsewhere. It need not agree between cores. Operations before it may still be
# under way, so it may come some 0.1 us early.
ticks: Any = _counter_of_core if simd.FEATURES.x86 else _nanoseconds_of_wall
