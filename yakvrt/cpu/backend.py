"""The CPU backend: weights in tiles, KV rows, recorders and the steps they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from ..kernel_build.compilers import Progress
from ..kernel_build.spec import KernelSpec, kernel
from ..kernels.chunk_layout import ChunkShape
from ..kernels.page_layout import PageShape
from ..kernels.paper_layout import PaperShape
from ..kernels.pool_shapes import PoolShape
from ..kernels.tile_layout import ROWS
from ..kernels.yakv_layout import Budget, YakvShape
from ..ops import ELEMENT_BYTES, Batch, Buffer, KvRows
from ..trace_log import TraceLog
from .affinity import Affinity, place_threads, team_size, usable
from .chunk_pools import ChunkPools
from .kernel_cache import KernelCache
from .memory import ROW_FLOATS, aligned_array, padded, reserved
from .page_pools import PagePools
from .paper_pools import PaperPools
from .recorder import Piece, Recorder
from .tape import HostCall, Tape
from .team import Team, check_threads
from .tiled_matrix import TiledMatrix
from .tiled_rows import TiledRows
from .topology import machine_topology
from .yakv_pools import YakvPools

POOLS: dict[type[PoolShape], Any] = {  # by what tells their form
    PageShape: PagePools,
    ChunkShape: ChunkPools,
    PaperShape: PaperPools,
}


class Step:
    """A recorded step: fill `batch`, then run its parts."""

    def __init__(self, team: Team, parts: list[list[Piece]], batch: Batch) -> None:
        self._team, self._parts = team, parts
        self.batch = batch
        self._threads = team.everyone

    def run(self, part: int = 0, n_parts: int = 1) -> None:
        for each in range(part, part + n_parts):
            self._run(each)

    def _run(self, part: int) -> None:
        if part == 0 and len(self.batch.tokens) == 1:  # one token: the work is shared out evenly
            self._threads = self._team.attending()  # kept to the end, as threads keep values of their own
        for piece in self._parts[part]:
            if isinstance(piece, HostCall):
                self._call(piece)
            else:
                self._team.run(piece, self._threads)

    def _call(self, call: HostCall) -> None:
        name, layer, _ = call.stage
        with self._team.log.span(name, layer) if self._team.log else nullcontext():
            call.function()


class HostStates:
    """The hidden states of a whole prompt between two layers."""

    def __init__(self, n_rows: int, width: int) -> None:
        self._rows = np.empty((n_rows, width), np.float32)

    def keep(self, first: int, x: Buffer, n: int) -> None:
        self._rows[first : first + n] = x.data[:n]

    def give(self, first: int, x: Buffer, n: int) -> None:
        x.data[:n] = self._rows[first : first + n]

    def free(self) -> None:
        pass  # they go with the object


class CpuBackend:
    """Owns the kernel cache and the thread team; close() ends the threads.

    More threads than the machine has CPUs are not started: they would wait for each other's turn.
    Raises: ValueError for a number of threads or CPUs that cannot be, RuntimeError when a kernel does not
        compile.
    """

    def __init__(
        self,
        n_threads: int | None = None,
        progress: Progress | None = None,
        affinity: Affinity | None = None,
    ) -> None:
        affinity = affinity or Affinity()
        topology = usable(affinity, machine_topology())
        if n_threads is not None:
            check_threads(n_threads)
        n_threads = team_size(n_threads, affinity, topology)
        places = place_threads(affinity, topology, n_threads)
        self._cache = KernelCache()
        self._progress = progress
        self._further: dict[KernelSpec, None] = {}  # that no step names, compiled with those of steps
        self.team = Team(n_threads, self._cache, progress, places)

    layers_under_way = 1  # of a prompt

    @property
    def n_threads(self) -> int:
        return self.team.n_threads

    def scope(self) -> nullcontext[None]:
        """Python gives back what nobody refers to."""
        return nullcontext()

    def beside(self) -> nullcontext[None]:
        """All is done when asked."""
        return nullcontext()

    def settle(self) -> None:
        """Nothing is under way."""

    def trace(self, log: TraceLog | None) -> None:
        self.team.trace(log)

    def close(self) -> None:
        self.team.close()

    def decode_rows(self, n: int) -> int:
        return n

    def buffer(self, n_rows: int, width: int) -> Buffer:
        return Buffer(np.zeros((n_rows, width), np.float32), width, np.full(1, n_rows, np.int64))

    def write(self, x: Buffer, rows: np.ndarray) -> None:
        x.data[: len(rows), : x.width] = rows

    def read(self, x: Buffer, first: int, last: int) -> np.ndarray:
        rows: np.ndarray = x.data[first:last, : x.width]
        return rows

    def copy(self, to: Buffer, at: int, source: Buffer, first: int, n: int) -> None:
        to.data[at : at + n, : to.width] = source.data[first : first + n, : to.width]

    def clear(self, x: Buffer) -> None:
        x.data[:] = 0

    def hidden_states(self, n_rows: int, x: Buffer) -> HostStates:
        return HostStates(n_rows, x.data.shape[1])

    def prepare(self, specs: Iterable[KernelSpec]) -> None:
        """Compiles the kernels that are missing, and those of pools, all at once."""
        self._cache.load([*specs, *self._further], self._progress)

    def prepare_formats(self, format_names: Iterable[str]) -> None:
        """Compiles what repacks these weight formats."""
        self.prepare(kernel("repack", "repack_cpu", name) for name in sorted(set(format_names)))

    def repack(self, matrix: TiledMatrix, data: np.ndarray, row_index: np.ndarray) -> None:
        """Fills the tiles from GGUF rows; row i of the matrix is row row_index[i] of the data.

        Each thread writes, and so gets near it, the tiles that it reads when one token is decoded.

        Shapes: data uint8 [rows, row bytes] or [experts, rows, row bytes] (contiguous); row_index int64
        [rows].
        Raises: ValueError when a scale or weight is NaN or infinite.
        """
        index = np.full((matrix.n_experts, matrix.n_tiles * ROWS), -1, np.int64)
        index[:, : matrix.n_rows] = row_index + np.arange(matrix.n_experts)[:, None] * data.shape[-2]
        bad = np.zeros(1, np.int64)
        tape = Tape()
        zeros = [0] * 32  # the source of padding rows, behind the arguments
        tape.add(
            kernel("repack", "repack_cpu", matrix.format),
            matrix.tiles,
            np.ascontiguousarray(data),
            index,
            matrix.n_experts * matrix.n_tiles,
            matrix.n_cols,
            bad,
            *zeros,
        )
        self._run(tape)
        if bad[0]:
            raise ValueError("the weights hold NaN or infinite values; fetch the model again")

    def vector(self, values: np.ndarray) -> np.ndarray:
        """float32 values on a cache line, padded with zeros to whole tiles."""
        out = aligned_array((padded(len(values), ROW_FLOATS),), np.float32, zeroed=True)
        out[: len(values)] = values
        return out

    def sample(self, weight: TiledMatrix | np.ndarray) -> bytes:
        return weight.sample() if isinstance(weight, TiledMatrix) else weight.tobytes()

    def kv_rows(
        self, n_layers: int, n_slots: int, n_kv_heads: int, n_tokens: int, head_dim: int, kind: str
    ) -> list[KvRows]:
        """Exact KV rows per layer: keys in tiles of 16 positions, values in rows; pages cost memory once
        used.
        """
        head_bytes = padded(n_tokens, 16) * head_dim * ELEMENT_BYTES[kind]
        shape = (n_layers, n_slots, n_kv_heads, head_bytes)
        k, v = reserved(shape), reserved(shape)
        return [KvRows(k[i], v[i], n_kv_heads * head_bytes, head_bytes, kind) for i in range(n_layers)]

    def slot_rows(self, rows: KvRows, slot: int, n_kv_heads: int, head_dim: int) -> TiledRows:
        return TiledRows(rows, slot, n_kv_heads, head_dim)

    def page_pools(
        self,
        sizes: tuple[int, int, int, int],
        shape: PoolShape,
        most: tuple[int, int],
        staging: KvRows,
    ) -> Any:
        """As Backend.page_pools(); slots are as long as open() says, steps read as many pages as wanted."""
        rows = self.slot_rows(staging, 0, sizes[2], shape.head_dim)
        return POOLS[type(shape)](sizes, shape, most, rows)

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
    ) -> YakvPools:
        """Pools for slots of n_tokens tokens; `staging` are the exact rows of one layer of a prompt, n_places
        those of a head in the cache of rows.
        """
        sizes = n_layers, n_slots, n_kv_heads, n_tokens
        pools = YakvPools(self._run, self.n_threads, *sizes, shape, budget, staging[0], n_places)
        self._further |= dict.fromkeys(pools.specs)
        return pools

    def record(
        self,
        capacity: int,
        *,
        inv_freq: np.ndarray,
        rope_scale: float,
        heads: tuple[int, int, int],
    ) -> Recorder:
        """A recorder for steps of up to `capacity` rows. heads: (n_heads, n_kv_heads, head_dim)."""
        return Recorder(self.n_threads, capacity, inv_freq, rope_scale, heads)

    def finish(self, recorder: Recorder) -> Step:
        """Compiles and links what was recorded."""
        addresses = self._cache.load(recorder.specs, self._progress)
        parts = [[p for p in part if not (isinstance(p, Tape) and p.is_empty)] for part in recorder.parts]
        for part in parts:
            for piece in part:
                if isinstance(piece, Tape):
                    piece.finish(addresses)
        return Step(self.team, parts, recorder.batch)

    def _run(self, tape: Tape) -> None:
        tape.finish(self._cache.load(tape.specs, self._progress))
        self.team.run(tape)
