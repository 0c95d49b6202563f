"""How long every kernel of a recorded step takes: the step again, with the clock read between its ops."""

from __future__ import annotations

from typing import Any

import numpy as np

from yakvrt.cpu.backend import CpuBackend
from yakvrt.cpu.tape import Tape
from yakvrt.kernel_build.spec import kernel


class KernelClock:
    """Ops that share no barrier otherwise get one here, from the reading of the clock."""

    def __init__(self, backend: CpuBackend, step: Any) -> None:
        pieces = [piece for part in step._parts for piece in part]
        rows = [row for piece in pieces if isinstance(piece, Tape) for row in piece._rows]
        self._times = np.zeros(len(rows) + 1, np.int64)
        self._names = [spec.symbol for spec, _, _ in rows]
        self._tape = Tape()
        self._tape._kept += pieces
        self._tape.add(kernel("timestamp", "timestamp_cpu"), self._times[:1])
        for i, (spec, block, _) in enumerate(rows):
            self._tape._rows.append((spec, block, True))
            self._tape.add(kernel("timestamp", "timestamp_cpu"), self._times[i + 1 :])
        self._tape.finish(backend._cache.load(self._tape.specs))
        self._team = backend.team
        self._taken_ns: list[np.ndarray] = []

    def run(self) -> None:
        """The step once more, as the batch stands."""
        self._team.run(self._tape)
        self._taken_ns.append(np.diff(self._times))

    def rows(self) -> list[dict[str, Any]]:
        """Medians over the runs, summed by kernel, the largest first."""
        of_op = np.median(self._taken_ns, axis=0) / 1e6
        by_kernel = {name: of_op[[each == name for each in self._names]] for name in self._names}
        return [
            {
                "kernel": name,
                "ms": round(found.sum(), 4),
                "share": round(found.sum() / of_op.sum(), 4),
                "ops": len(found),
            }
            for name, found in sorted(by_kernel.items(), key=lambda item: -item[1].sum())
        ]


def shown(row: dict[str, Any]) -> str:
    return f"{row['ms']:10.3f} ms {row['share']:7.1%} {row['ops']:5} ops  {row['kernel']}"
