"""Times copies and gathers of host memory by compiled kernels, and compares what they wrote."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from yakvrt.cpu.kernel_cache import KernelCache
from yakvrt.cpu.tape import Tape
from yakvrt.cpu.team import Team
from yakvrt.kernel_build.compilers import Progress
from yakvrt.kernel_build.spec import KernelSpec, kernel
from yakvrt.kernels.copy_bytes import copy_bytes_ref
from yakvrt.kernels.gather_rows import gather_rows_ref
from yakvrt.transfer.memory import POISON, SLACK, HostMemory
from yakvrt.transfer.plan import COPIES, Case

COPY = kernel("copy_bytes", "copy_bytes_cpu")
PAGE, LINE = 4096, 64
MAX_LOOPS = 1024
MAX_ID = (1 << 31) - 1  # the gather's ids are int32
CHECKED_BYTES = 32 << 20  # compared at once
SEED = 1234


@dataclass(frozen=True, slots=True)
class Operation:
    """One copy or gather: its kernel and arguments, and its part of the source as numpy reads it."""

    spec: KernelSpec
    arguments: tuple[np.ndarray | int, ...]
    unit_bytes: int
    expected: Callable[[int, int], np.ndarray]
    """Units first .. last - 1 of what it must have written: uint8 [last - first, unit_bytes]."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds of one operation, a number for each sample of n_loops operations in a row."""

    samples_ns: tuple[float, ...]
    n_loops: int
    verified_bytes: int


def compile_kernels(cache: KernelCache, cases: list[Case], progress: Progress | None) -> None:
    """Compiles what the cases take, before anything is timed."""
    sizes = sorted({case.row_bytes for case in cases if case.test == "gather"})
    cache.load([COPY, *(kernel("gather_rows", "gather_rows_cpu", n) for n in sizes)], progress)


class Stopwatch:
    """Teams of threads, and one kind of memory that they copy and gather.

    Units: sample_s is the least that a sample should last, so that operations which take less are repeated.
    Owns: the memory, and the teams, whose last job keeps it; `stopwatch` lets go of both.
    """

    def __init__(self, cache: KernelCache, memory: HostMemory, n_samples: int, sample_s: float) -> None:
        self.memory = memory
        self._cache = cache
        self._n_samples, self._sample_s = n_samples, sample_s
        self._teams: dict[int, Team] = {}

    def time(self, case: Case) -> Timing:
        """Times the case and compares what its last operation wrote.

        Raises: RuntimeError when that is not what numpy finds.
        """
        memory = self.memory
        operations = _operations(case, memory)
        team = self._team(case.setting.n_threads)
        memory.poison(case.n_bytes)
        idle, (last, tape) = self._tape([_empty(memory)]), self._next(operations, 1)
        taken = _seconds(team, tape)  # the warm-up, which also finds the number of loops
        n_loops = 1
        while case.test != "job" and taken < self._sample_s / 2 and n_loops < MAX_LOOPS:
            n_loops = min(MAX_LOOPS, max(2 * n_loops, int(n_loops * self._sample_s / taken)))
            last, tape = self._next(operations, n_loops)
            taken = _seconds(team, tape)
        samples = []
        for _ in range(self._n_samples):
            last, tape = self._next(operations, n_loops)
            team.run(idle)  # wakes whoever went to sleep meanwhile
            samples.append(_seconds(team, tape) * 1e9 / n_loops)
        return Timing(tuple(samples), n_loops, verify(case, last, memory.out))

    def close(self) -> None:
        """Ends the threads and forgets them."""
        while self._teams:
            self._teams.popitem()[1].close()

    def _team(self, n_threads: int) -> Team:
        if n_threads not in self._teams:
            self._teams[n_threads] = Team(n_threads, self._cache)
        return self._teams[n_threads]

    def _next(self, operations: Iterator[Operation], n: int) -> tuple[Operation, Tape]:
        """A tape of the next n operations, and the last of them."""
        taken = [next(operations) for _ in range(n)]
        return taken[-1], self._tape(taken)

    def _tape(self, operations: list[Operation]) -> Tape:
        tape = Tape()
        for operation in operations:
            tape.add(operation.spec, *operation.arguments)
        tape.finish(self._cache.load(tape.specs))
        return tape


@contextmanager
def stopwatch(cache: KernelCache, memory: HostMemory, n_samples: int, sample_s: float) -> Iterator[Stopwatch]:
    """A Stopwatch whose threads end with the block."""
    watch = Stopwatch(cache, memory, n_samples, sample_s)
    try:
        yield watch
    finally:
        watch.close()


def verify(case: Case, last: Operation, out: np.ndarray) -> int:
    """Compares the target with what the last operation must have written, and returns the bytes compared.

    Raises: RuntimeError when they differ, or when something was written behind them.
    """
    unit = last.unit_bytes
    n_units, step = case.n_bytes // unit, max(1, CHECKED_BYTES // unit)
    for first in range(0, n_units, step):
        end = min(first + step, n_units)
        found = out[first * unit : end * unit].reshape(-1, unit)
        if not np.array_equal(found, last.expected(first, end)):
            raise RuntimeError(
                f"{case.name} wrote wrong bytes between {first * unit} and {end * unit}: this is a bug in "
                "the kernel, or the memory is faulty"
            )
    if not (out[case.n_bytes : case.n_bytes + SLACK] == POISON).all():
        raise RuntimeError(f"{case.name} wrote behind its {case.n_bytes} bytes: this is a bug in the kernel")
    return case.n_bytes


def _seconds(team: Team, tape: Tape) -> float:
    began = time.perf_counter_ns()
    team.run(tape)
    return (time.perf_counter_ns() - began) / 1e9


def _empty(memory: HostMemory) -> Operation:
    return _copy(memory, memory.source[:0])


def _operations(case: Case, memory: HostMemory) -> Iterator[Operation]:
    """Operation after operation of a case, every one on memory of its own choice."""
    if case.test == "gather":
        return _gathers(case, memory)
    if case.test in COPIES:
        return _copies(case, memory)
    return _empties(memory)


def _empties(memory: HostMemory) -> Iterator[Operation]:
    while True:
        yield _empty(memory)


def _copies(case: Case, memory: HostMemory) -> Iterator[Operation]:
    """Copies from pages at random, or always from the same ones, which a cache holds then."""
    rng = np.random.default_rng(SEED)
    n_starts = (memory.pool_bytes - case.row_bytes) // PAGE + 1 if case.test == "copy" else 1
    while True:
        start = int(rng.integers(n_starts)) * PAGE
        yield _copy(memory, memory.source[start : start + case.row_bytes])


def _copy(memory: HostMemory, source: np.ndarray) -> Operation:
    lines = source.reshape(-1, LINE)

    def expected(first: int, last: int) -> np.ndarray:
        return copy_bytes_ref(lines[first:last])

    return Operation(COPY, (memory.out, source, source.nbytes), LINE, expected)


def _gathers(case: Case, memory: HostMemory) -> Iterator[Operation]:
    """Gathers of rows at random, none twice in one gather: the pool is much larger than the caches."""
    rng = np.random.default_rng(SEED)
    n_pool = min(memory.pool_bytes // case.row_bytes, MAX_ID)
    start = case.setting.row_offset
    rows = memory.source[start : start + n_pool * case.row_bytes].reshape(n_pool, case.row_bytes)
    while True:
        ids = rng.choice(n_pool, case.n_rows, replace=False).astype(np.int32)
        if case.setting.row_order == "sorted":
            ids.sort()
        yield _gather(memory, rows, ids)


def _gather(memory: HostMemory, rows: np.ndarray, ids: np.ndarray) -> Operation:
    row_bytes = rows.shape[1]

    def expected(first: int, last: int) -> np.ndarray:
        return gather_rows_ref(rows, ids[first:last])

    spec = kernel("gather_rows", "gather_rows_cpu", row_bytes)
    return Operation(spec, (memory.out, rows, row_bytes, ids, len(ids)), row_bytes, expected)
