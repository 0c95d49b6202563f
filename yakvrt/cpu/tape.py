"""A recorded step: which kernels run in which order on which memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernel_build.spec import KernelSpec
from ..kernels.team import PAIR
from ..trace_records import Stage
from .memory import padded

LINE_WORDS = 16  # what different threads write lies on different cache lines
MIN_ARGUMENTS = 24  # blocks are filled up with zeros, which stand for "not used" in every kernel


class Tape:
    """Rows of (kernel, arguments, barrier), resolved to addresses by finish(), which also tells the stages
    that traces show; `words` are the address of the rows and their number, bounds_words the address of the
    stages' first rows, behind which the number of rows lies, and their number, time_words how many words a
    thread writes times to.

    Owns: the argument blocks, and a reference to every array whose address they hold.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[KernelSpec, np.ndarray, bool]] = []
        self._kept: list[Any] = []
        self._stages: list[tuple[int, Stage]] = []
        self.stages: tuple[Stage, ...] = ()
        self.words, self.bounds_words, self.time_words = (0, 0), (0, 0), 0

    def add(self, spec: KernelSpec, *arguments: np.ndarray | int | None, barrier: bool = True) -> np.ndarray:
        """Appends one op; an array stands for its address, None for address 0, arguments left out for 0.

        Without `barrier` the next op starts on each thread as soon as that thread is done.
        Returns: the argument block, for what later ops tell.
        """
        values = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                self._kept.append(argument)
                values.append(argument.ctypes.data)
            else:
                values.append(argument or 0)
        block = np.zeros(max(MIN_ARGUMENTS, len(values)), np.int64)
        block[: len(values)] = values
        self._rows.append((spec, block, barrier))
        return block

    def begin_stage(self, stage: Stage) -> None:
        """Says what the ops from here on are, in traces."""
        self._stages.append((len(self._rows), stage))

    def reads(self, n_bytes: int) -> None:
        """Adds to what the stage says that it reads."""
        if self._stages:
            first, stage = self._stages[-1]
            self._stages[-1] = first, stage._replace(n_bytes=stage.n_bytes + n_bytes)

    @property
    def is_empty(self) -> bool:
        return not self._rows

    @property
    def specs(self) -> list[KernelSpec]:
        return [spec for spec, _, _ in self._rows]

    def finish(self, addresses: dict[KernelSpec, int]) -> None:
        """Resolves the kernels. Behind the last op the team's leader waits for all threads."""
        if not self._rows:
            raise ValueError("a tape without ops cannot be run")
        rows = [(addresses[spec], block.ctypes.data, barrier) for spec, block, barrier in self._rows]
        self._table = np.array(rows, np.int64).reshape(-1, 3)
        self.words = self._table.ctypes.data, len(rows)
        stages = {first: stage for first, stage in self._stages if first < len(rows)}
        found = tuple(stages.values()) or (Stage(),)
        if found != self.stages:  # traces know them by their identity
            self.stages = found
        # what comes before the first belongs to it
        self._bounds = np.array([0, *list(stages)[1:], len(rows)], np.int64)
        self.bounds_words = self._bounds.ctypes.data, len(self.stages)
        self.time_words = padded(PAIR * (len(self.stages) + 2), LINE_WORDS)


@dataclass(frozen=True, slots=True)
class HostCall:
    """Plain Python between two tapes."""

    function: Callable[[], None]
    stage: Stage
