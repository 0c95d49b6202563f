"""Threads of the host that gather rows into pinned memory: the runtime's own where its compiler works, else
numpy's copies, so that a machine with cubins alone can be timed as well.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np


class HostGather(Protocol):
    """`by`: what gathers, for the record."""

    by: str

    def prepared(self, out: np.ndarray, rows: np.ndarray, ids: np.ndarray) -> Callable[[], None]:
        """What does it when called. Shapes: out uint8 [n, row_bytes], rows uint8 [rows, row_bytes], ids int32
        [n].
        """

    def close(self) -> None: ...


def host_gather(n_threads: int) -> HostGather:
    """The better one that can run here."""
    try:
        team = TeamGather(n_threads)
        some = np.zeros((1, 128), np.uint8)
        team.prepared(some, some.copy(), np.zeros(1, np.int32))()
    except (ImportError, OSError, RuntimeError):
        return NumpyGather(n_threads)
    return team


class TeamGather:
    """The runtime's threads and kernel."""

    by = "kernel"

    def __init__(self, n_threads: int) -> None:
        from yakvrt.cpu.kernel_cache import KernelCache
        from yakvrt.cpu.team import Team

        self._cache = KernelCache()
        self._team = Team(n_threads, self._cache)

    def prepared(self, out: np.ndarray, rows: np.ndarray, ids: np.ndarray) -> Callable[[], None]:
        from yakvrt.cpu.tape import Tape
        from yakvrt.kernel_build.spec import kernel

        tape, row_bytes = Tape(), rows.shape[1]
        spec = kernel("gather_rows", "gather_rows_cpu", row_bytes)
        tape.add(spec, out, rows, row_bytes, ids, len(ids))
        tape.finish(self._cache.load(tape.specs))
        return lambda: self._team.run(tape)

    def close(self) -> None:
        self._team.close()


class NumpyGather:
    """Threads that each take a part of the rows."""

    by = "numpy"

    def __init__(self, n_threads: int) -> None:
        self._n_threads, self._pool = n_threads, ThreadPoolExecutor(n_threads)

    def prepared(self, out: np.ndarray, rows: np.ndarray, ids: np.ndarray) -> Callable[[], None]:
        parts = [
            slice(len(ids) * i // self._n_threads, len(ids) * (i + 1) // self._n_threads)
            for i in range(self._n_threads)
        ]

        def take(part: slice) -> None:
            np.take(rows, ids[part], axis=0, out=out[part], mode="clip")  # "raise" would copy `out`

        return lambda: [*self._pool.map(take, parts)].clear()

    def close(self) -> None:
        self._pool.shutdown()
