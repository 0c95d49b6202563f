"""Times several programs in turn in one process, so that all of them see the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from quiet import Meter, settle, wait_for_quiet

TRIES_PER_SAMPLE = 3

Logits = npt.NDArray[np.float32]
Result = TypeVar("Result")


def in_own_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Runs it in a thread that ends with it, so that nothing of one program stays in another's way: what it
    pins, how it set matrix registers, and its team of libgomp. llama.cpp and torch share that library, which
    lets threads sleep instead of spin where there are more than processors, idle teams included.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result()


class Engine(Protocol):
    """What is timed of either side."""

    def prefill(self, ids: Sequence[int]) -> Logits: ...

    def decode(self, token: int) -> Logits: ...

    def truncate(self, n: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed run; it counts when the machine was quiet."""

    tps: float
    own_cpus: float
    other_cpus: float
    counts: bool


@dataclass(slots=True)
class Side:
    """One engine, whose work runs in threads of its own."""

    name: str
    engine: Engine
    depth: int = 0

    def go_to(self, ids: Sequence[int]) -> Logits:
        """Extends the context to these ids, of which the first `depth` are held; the logits of the last."""
        logits = in_own_thread(self._extend, ids)
        self.depth = len(ids)
        return logits

    def _extend(self, ids: Sequence[int]) -> Logits:
        self.engine.truncate(min(self.depth, len(ids) - 1))
        return self.engine.prefill(ids[min(self.depth, len(ids) - 1) :]).copy()

    def sample(self, test: str, ids: Sequence[int]) -> Sample:
        """Times one prompt ("pp") or one generation ("tg") of these ids on top of the context held."""
        settle()
        with Meter() as meter:
            seconds = in_own_thread(self._run, test, ids)
        settle()
        return Sample(len(ids) / seconds, round(meter.own_cpus, 3), round(meter.other_cpus, 3), meter.quiet)

    def close(self) -> None:
        """Frees the engine."""
        in_own_thread(self.engine.close)

    def _run(self, test: str, ids: Sequence[int]) -> float:
        self.engine.truncate(self.depth)
        began = time.perf_counter()
        if test == "pp":
            self.engine.prefill(ids)
        else:
            for token in ids:
                self.engine.decode(token)
        return time.perf_counter() - began


@dataclass(slots=True)
class Row:
    """All samples of one side in one test."""

    side: str
    test: str
    depth: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def counted(self) -> list[float]:
        return [sample.tps for sample in self.samples if sample.counts]

    @property
    def median_tps(self) -> float:
        """Over the quiet samples; over all of them where none was quiet, which `noisy` then says."""
        return statistics.median(self.counted or [sample.tps for sample in self.samples])

    def summary(self) -> dict[str, Any]:
        kept = self.counted or [sample.tps for sample in self.samples]
        return {
            "side": self.side,
            "test": self.test,
            "depth": self.depth,
            "median_tps": round(self.median_tps, 2),
            "min_tps": round(min(kept), 2),
            "max_tps": round(max(kept), 2),
            "median_own_cpus": statistics.median(sample.own_cpus for sample in self.samples),
            "n_quiet": len(self.counted),
            "n_rejected": len(self.samples) - len(self.counted),
            "noisy": not self.counted,
        }


def measure(sides: Sequence[Side], test: str, ids: Sequence[int], reps: int) -> list[Row]:
    """Takes turns until every side has `reps` quiet samples, or has had three times as many tries."""
    depth = sides[0].depth
    rows = [Row(side.name, f"{test}{len(ids)}", depth) for side in sides]
    for side in sides:
        side.sample(test, ids)
    for turn in range(reps * TRIES_PER_SAMPLE):
        if all(len(row.counted) >= reps for row in rows):
            break
        wait_for_quiet()
        pairs = list(zip(sides, rows, strict=True))
        # Who goes first changes every turn, so that neither always follows the other.
        for side, row in pairs[turn % len(pairs) :] + pairs[: turn % len(pairs)]:
            row.samples.append(side.sample(test, ids))
    return rows
