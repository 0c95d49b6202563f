"""Runs one kernel on a real thread team, for the tests of kernels."""

from __future__ import annotations

import numpy as np

from yakvrt.cpu.kernel_cache import KernelCache
from yakvrt.cpu.memory import aligned_array
from yakvrt.cpu.query_record import scores_by_tables
from yakvrt.cpu.tape import Tape
from yakvrt.cpu.team import Team
from yakvrt.kernel_build.spec import KernelSpec, kernel

# how this CPU rounds what it scores with: see higgs_score.score_ref
SCORE_ROUNDING = "tables" if scores_by_tables() else "int8"


class KernelTeam:
    """A kernel cache and a team of `n_threads`."""

    def __init__(self, n_threads: int) -> None:
        self.cache = KernelCache()
        self.team = Team(n_threads, self.cache)
        self.n_threads = n_threads

    def run(
        self, op: str, builder: str, parameters: tuple[str | int | bool, ...], *arguments: object
    ) -> None:
        self.run_spec(kernel(op, builder, *parameters), *arguments)

    def run_spec(self, spec: KernelSpec, *arguments: object) -> None:
        tape = Tape()
        tape.add(spec, *arguments)  # type: ignore[arg-type]
        tape.finish(self.cache.load([spec]))
        self.team.run(tape)


def poisoned(*shape: int) -> np.ndarray:
    """An aligned float32 array full of NaN: an output that is not written shows."""
    array = aligned_array(shape, np.float32)
    array[:] = np.nan
    return array


def count(n: int) -> np.ndarray:
    """A row count as kernels read it."""
    return np.array([n], np.int64)


def number(value: float) -> np.ndarray:
    return np.array([value], np.float32)
