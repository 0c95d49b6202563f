"""What a backend offers to the model: ops that are recorded once and replayed every step.

The model text and the KV methods call these on an `Ops` object and hold no device word. What changes between
replays lives in the small state arrays of a Batch, which the ops read when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .trace_records import NO_LAYER

ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}  # of the number formats that keys and values may rest in

# A layer's rows under YAKV, exact and as codes, in the backend's own layout.
YakvRows = Any

# A layer's rows, of which a step reads the best pages, chunks or tokens, in the backend's own layout.
PageRows = Any

# A weight matrix, or a stack of experts' matrices, with its bias if it has one, in the backend's own layout.
Matrix = Any


def element_type(kind: str) -> np.dtype[Any]:
    """The NumPy type of a number format of exact rows."""
    if kind == "bf16":
        import ml_dtypes

        wide: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return wide
    return np.dtype({"f16": np.float16, "f32": np.float32}[kind])


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step: row i is token tokens[i] at positions[i] of KV slot slots[i].

    All arrays are int64 and owned by the step.
    """

    tokens: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    n_rows: np.ndarray

    @classmethod
    def empty(cls, capacity: int) -> Batch:
        return cls.over(np.zeros(cls.length(capacity), np.int64), capacity)

    @classmethod
    def over(cls, numbers: np.ndarray, capacity: int) -> Batch:
        """In one piece of memory, int64 [length(capacity)]."""
        tokens, positions, slots = numbers[: 3 * capacity].reshape(3, capacity)
        return cls(tokens, positions, slots, numbers[3 * capacity :])

    @staticmethod
    def length(capacity: int) -> int:
        return 3 * capacity + 1


@dataclass(frozen=True, slots=True)
class Buffer:
    """Activations [capacity, width]; only the first n_rows[0] rows hold a value."""

    data: Any
    width: int
    n_rows: np.ndarray


@dataclass(frozen=True, slots=True)
class KvRows:
    """Exact keys and values of one layer, all slots, in the backend's own layout."""

    k: Any
    v: Any
    slot_bytes: int
    head_bytes: int
    kind: str


class Ops(Protocol):
    """One step under recording."""

    @property
    def batch(self) -> Batch: ...

    def buffer(self, width: int) -> Buffer:
        """Memory for the rows of the batch."""

    def stage(self, name: str, layer: int = NO_LAYER) -> None:
        """What is recorded from here on is this part of a step, as traces show it. Costs a step nothing."""

    def call(self, function: Callable[[], None]) -> None:
        """Runs plain Python between the ops: what a method does not do in kernels."""

    def read(self, x: Buffer, n: int) -> np.ndarray:
        """For such a function: the first n rows. Shapes: float32 [n, width]; not to be written to."""

    def write(self, x: Buffer, rows: np.ndarray) -> None:
        """For such a function: rows in place of the first ones of x."""

    def embed(self, out: Buffer, table: Matrix) -> None: ...

    def rms_norm(self, out: Buffer, x: Buffer, weight: Any, eps: float) -> None: ...

    def head_norm(self, out: Buffer, x: Buffer, weight: Any, eps: float) -> None:
        """RMS norm of every head of x."""

    def matmul(
        self, outs: Sequence[Buffer], matrices: Sequence[Matrix], x: Buffer, *, add: bool = False
    ) -> None:
        """outs[i] = matrices[i] x + bias, or added to what outs[i] holds."""

    def gated_matmul(self, out: Buffer, gate: Matrix, up: Matrix, x: Buffer) -> None:
        """out = silu(gate x) * (up x), the first half of a SwiGLU feed-forward."""

    def rope(self, out: Buffer, x: Buffer) -> None:
        """Rotates every head of x by the position of its row."""

    def moe(
        self,
        x: Buffer,
        h: Buffer,
        router: Matrix,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
        n_used: int,
        renormalise: bool,
    ) -> None:
        """x += the SwiGLU of h by the n_used best experts, weighted by the router."""

    def kv_append(self, rows: KvRows, k: Buffer, v: Buffer) -> None: ...

    def attend_prefill(self, out: Buffer, q: Buffer, rows: KvRows) -> None:
        """Causal attention of consecutive tokens of one slot."""

    def attend_decode(self, out: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: KvRows) -> None:
        """Appends the row of every slot, then attends over each slot's rows."""

    def attend_pages(self, out: Buffer, q: Buffer, k: Buffer, v: Buffer, by: Buffer, rows: PageRows) -> None:
        """Appends the row of every slot, then attends over the rows that are always read, and over the best
        of the others for the queries `by`.
        """

    def attend_yakv(self, out: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: YakvRows) -> None:
        """Appends the row of every slot, then attends over its exact rows, the selected ones and the tail."""

    def yakv_tail_errors(
        self, errors: Buffer, exact: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: YakvRows
    ) -> None:
        """As attend_yakv, but in place of an output it adds to errors [Hq, parts] how far it would be from
        `exact` with every part of the tail (kernels/yakv_fit.py).
        """

    def keep_rows(self, kept: Sequence[Buffer], xs: Sequence[Buffer]) -> None:
        """For each of xs, the row of position p of a prompt becomes row p % n of its buffer in `kept`, of the
        backend's own n rows, for the last n positions so far.
        """
