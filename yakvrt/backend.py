"""What a backend is to the code above it: recorders, steps, and the rows that come and go between steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from .draw import Draw, Drawn
from .kernel_build.spec import KernelSpec
from .kernels.pool_shapes import PoolShape
from .kernels.yakv_layout import Budget, YakvShape
from .ops import Batch, Buffer, KvRows, Ops
from .trace_log import TraceLog


class Recording(Ops, Protocol):
    """A step under recording, in parts that run one at a time over the same buffers."""

    @property
    def specs(self) -> list[KernelSpec]:
        """The kernels that the step launches."""

    def next_part(self) -> None:
        """What follows is recorded into a part of its own."""

    def drawing(self, logits: Buffer) -> Drawing | None:
        """Records into a further part that a token is drawn from each row; None where the host does that."""


class Drawing(Protocol):
    """Tokens that a step draws: ask(), run, drawn()."""

    def ask(self, draws: Sequence[Draw | None]) -> None:
        """One for every row of the step; None where logits are wanted."""

    def drawn(self, draws: Sequence[Draw | None]) -> list[Drawn | None]: ...


class Step(Protocol):
    """A recorded step: fill `batch`, then run its parts."""

    @property
    def batch(self) -> Batch: ...

    def run(self, part: int = 0, n_parts: int = 1) -> None:
        """n_parts of them, one behind the other."""


class HiddenStates(Protocol):
    """The hidden states of a whole prompt between two layers, where the backend computes."""

    def keep(self, first: int, x: Buffer, n: int) -> None:
        """The first n rows of x become rows first, first + 1, ..."""

    def give(self, first: int, x: Buffer, n: int) -> None:
        """Rows first, first + 1, ... become the first n rows of x."""

    def free(self) -> None: ...


class SlotValues(Protocol):
    """Values of a slot, as much of an array as it takes to save and restore them: np.asarray() of it,
    values[...] = x, and a range along an axis, as values[:, :8].
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def itemsize(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def __array__(self) -> np.ndarray: ...

    def __getitem__(self, key: tuple[slice, ...], /) -> SlotValues: ...

    def __setitem__(self, key: Any, values: Any, /) -> None: ...


class SlotRows(Protocol):
    """The exact rows of one slot and layer. Shapes: k and v float32 [Hk, n, D].

    key_tile: keys of so many positions rest together.
    """

    key_tile: int

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """K and V of positions first to last - 1."""

    def write(self, first: int, k: np.ndarray, v: np.ndarray) -> None:
        """Lays rows down from position `first`."""

    def state(self, n_held: int) -> tuple[SlotValues, SlotValues]:
        """Keys and values of the first n_held positions as they rest, in tiles or rows along axis 1."""


class Backend(Protocol):
    """Kernels, and memory where they compute. close() gives all of it back."""

    @property
    def n_threads(self) -> int: ...

    @property
    def layers_under_way(self) -> int:
        """Of a prompt: two where one is stored while the next computes, else one."""

    def beside(self) -> AbstractContextManager[None]:
        """What is asked inside is done behind what was asked before, and may be done beside what is asked
        afterwards, up to the next time or settle().
        """

    def settle(self) -> None:
        """What is asked from now on is done behind all that was asked beside it."""

    def scope(self) -> AbstractContextManager[None]:
        """Memory and steps that are asked for inside are given back at its end, and no longer of use."""

    def decode_rows(self, n: int) -> int:
        """The rows of the step that decodes n tokens at once, at least n: steps are recorded for these."""

    def prepare(self, specs: Iterable[KernelSpec]) -> None:
        """Compiles the kernels that are missing, all at once."""

    def record(
        self, capacity: int, *, inv_freq: np.ndarray, rope_scale: float, heads: tuple[int, int, int]
    ) -> Recording:
        """A recorder for steps of up to `capacity` rows. heads: (n_heads, n_kv_heads, head_dim)."""

    def finish(self, recorder: Any) -> Step:
        """Makes ready to run what one of its recorders recorded."""

    def buffer(self, n_rows: int, width: int) -> Buffer:
        """Memory for rows of no step."""

    def write(self, x: Buffer, rows: np.ndarray) -> None:
        """The first rows of x. Shapes: float32 [n, width]."""

    def read(self, x: Buffer, first: int, last: int) -> np.ndarray:
        """Rows first to last - 1 of x, once the steps so far have run; valid until the next step.

        Shapes: float32 [last - first, width].
        """

    def copy(self, to: Buffer, at: int, source: Buffer, first: int, n: int) -> None:
        """n rows of `source` from row `first` on become rows at, at + 1, ... of another, equally wide."""

    def clear(self, x: Buffer) -> None:
        """All of it becomes zeros."""

    def hidden_states(self, n_rows: int, x: Buffer) -> HiddenStates:
        """For n_rows rows as wide as those of x."""

    def kv_rows(
        self, n_layers: int, n_slots: int, n_kv_heads: int, n_tokens: int, head_dim: int, kind: str
    ) -> list[KvRows]:
        """Exact KV rows per layer."""

    def sample(self, weight: Any) -> bytes:
        """What tells a matrix or vector from another: its shape, and pieces or all of it."""

    def slot_rows(self, rows: KvRows, slot: int, n_kv_heads: int, head_dim: int) -> SlotRows:
        """One slot of them, for the host."""

    def page_pools(
        self,
        sizes: tuple[int, int, int, int],
        shape: PoolShape,
        most: tuple[int, int],
        staging: KvRows,
    ) -> Any:
        """Of sizes (layers, slots, KV heads, tokens of a slot); most: pages of a head that a step chooses,
        places of a cache of them or 0. `staging` are the exact rows of one layer of a prompt.
        """

    def yakv_pools(
        self,
        n_layers: int,
        n_slots: int,
        n_kv_heads: int,
        n_tokens: int,
        shape: YakvShape,
        budget: Budget,
        staging: Sequence[KvRows],
        n_places: int = 0,
    ) -> Any:
        """Pools for slots of n_tokens tokens; `staging` are the exact rows of a prompt's layers in turn,
        n_places those of a head in the cache of rows.
        """

    def trace(self, log: TraceLog | None) -> None:
        """Notes from now on what runs when, on a track for each thread or stream; None ends that."""

    def close(self) -> None: ...
