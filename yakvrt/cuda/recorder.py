"""Records the model's ops as launches of CUDA kernels on device memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..kernel_build.spec import KernelSpec, kernel
from ..kernels.matmul import ADD, GATE, WRITE
from ..ops import Batch, Buffer, KvRows
from ..trace_records import NO_LAYER, Stage
from .chunk_pools import ChunkRows
from .device_array import DeviceArray
from .device_matrix import DeviceMatrix
from .drawing import CudaDrawing
from .page_pools import PageRows
from .paper_pools import PaperRows
from .record_attention import Queries, append_rows, record_decode_attention, record_prefill_attention
from .record_chunks import record_chunks
from .record_experts import record_experts
from .record_matmul import record_matmul
from .record_pages import record_pages
from .record_paper import record_paper
from .record_yakv import record_tail_errors, record_yakv
from .yakv_pools import YakvRows

if TYPE_CHECKING:
    from .backend import CudaBackend


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel over a grid of blocks; arguments are numbers, device arrays or None. One `beside` the others
    waits for those before it, and those behind it wait for it from its Join on.
    """

    kernel: KernelSpec
    grid: tuple[int, int]
    arguments: tuple[Any, ...]
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Join:
    """What follows waits for the first launch beside the others whose Join has not come yet."""


Piece = Launch | Join | Stage | Callable[[], None]


class DeviceBatch(NamedTuple):
    """ops.Batch where kernels read it."""

    tokens: DeviceArray
    positions: DeviceArray
    slots: DeviceArray
    n_rows: DeviceArray

    @classmethod
    def over(cls, numbers: DeviceArray, capacity: int) -> DeviceBatch:
        """In one piece of memory, as Batch.over() lays it out."""
        tokens, positions, slots = (numbers.part(i * capacity, capacity) for i in range(3))
        return cls(tokens, positions, slots, numbers.part(3 * capacity, 1))


# how a step attends to the rows of page_pools(), by their type
ATTENTION: dict[type, Callable[..., None]] = {
    PageRows: record_pages,
    ChunkRows: record_chunks,
    PaperRows: record_paper,
}


def blocks(n: int, per_block: int) -> int:
    return -(-n // per_block)


class CudaRecorder:
    """A step under recording (ops.Ops), in parts that run one at a time over the same buffers.

    `batch` is the step's own, on the host; kernels read `device_batch`. Scratch memory is shared by all ops
    of a step, which run one after another.
    """

    def __init__(
        self,
        backend: CudaBackend,
        capacity: int,
        inv_freq: np.ndarray,
        rope_scale: float,
        heads: tuple[int, int, int],
    ) -> None:
        self.parts: list[list[Piece]] = []
        self.capacity = capacity
        self.arch, self.gather_blocks = backend.arch, backend.gather_blocks
        self.n_heads, self.n_kv_heads, self.head_dim = heads
        self.backend = backend
        self.batch_numbers = np.zeros(Batch.length(capacity), np.int64)
        self.batch = Batch.over(self.batch_numbers, capacity)
        self.device_numbers = backend.array(self.batch_numbers.shape, np.int64)
        self.device_batch = DeviceBatch.over(self.device_numbers, capacity)
        self.zeros = backend.put(np.zeros(capacity, np.int64))
        self.numbers = backend.put(np.arange(capacity * self.n_heads, dtype=np.int64))
        self._scratch: dict[str, DeviceArray] = {}
        self._inv_freq, self._rope_scale = backend.put(inv_freq.astype(np.float32)), rope_scale
        self._rope_table = backend.array((capacity, self.head_dim), np.float32)
        self.next_part()

    @property
    def specs(self) -> list[KernelSpec]:
        """The kernels of all parts."""
        return [piece.kernel for part in self.parts for piece in part if isinstance(piece, Launch)]

    @property
    def n_rows(self) -> Any:
        return self.device_batch.n_rows

    def next_part(self) -> None:
        """What follows is recorded into a part of its own."""
        self.parts.append([])
        self._stage_at = 0  # of the last one in the part's list, once there is one
        half = self.head_dim // 2
        self.launch(
            kernel("rope", "rope_table_cuda"),
            (blocks(half, 128), self.capacity),
            *(self._rope_table, self.device_batch.positions, self._inv_freq, half, self._rope_scale),
            self.n_rows,
        )

    def launch(self, spec: KernelSpec, grid: tuple[int, int], *arguments: Any) -> None:
        self.parts[-1].append(Launch(spec, grid, arguments))

    def launch_beside(self, spec: KernelSpec, grid: tuple[int, int], *arguments: Any) -> None:
        """Runs while what is recorded behind it runs, up to its join(); these come in the order of such
        launches, and at the end of a part at the latest.
        """
        self.parts[-1].append(Launch(spec, grid, arguments, beside=True))

    def stage(self, name: str, layer: int = NO_LAYER) -> None:
        self._stage_at = len(self.parts[-1])
        self.parts[-1].append(Stage(name, layer))

    @property
    def in_stage(self) -> Stage:
        held = self.parts[-1][self._stage_at]
        return held if isinstance(held, Stage) else Stage()

    def reads(self, n_bytes: int) -> None:
        """Adds to what the stage, where there is one, says that it reads."""
        held = self.parts[-1][self._stage_at]
        if isinstance(held, Stage):
            self.parts[-1][self._stage_at] = held._replace(n_bytes=held.n_bytes + n_bytes)

    def join(self) -> None:
        self.parts[-1].append(Join())

    def drawing(self, logits: Buffer) -> CudaDrawing | None:
        """Into a part of its own; None for rows whose addresses are no multiples of 16."""
        if logits.width % 4:
            return None
        self.next_part()
        self.stage("draw")
        return CudaDrawing(self, logits)

    def call(self, function: Callable[[], None]) -> None:
        self.parts[-1].append(function)

    def read(self, x: Buffer, n: int) -> np.ndarray:
        return self.backend.read(x, 0, n).copy()  # the next read uses the same memory

    def write(self, x: Buffer, rows: np.ndarray) -> None:
        self.backend.write(x, rows)

    def buffer(self, width: int) -> Buffer:
        return self.rows_buffer(self.capacity, width, self.n_rows)

    def rows_buffer(self, n_rows: int, width: int, present: Any) -> Buffer:
        """Memory for n_rows rows, of which present[0] hold a value."""
        return Buffer(self.backend.array((n_rows, width), np.float32), width, present)

    def scratch(self, name: str, n: int, dtype: type[np.generic]) -> DeviceArray:
        """At least n numbers that hold their values until the same name is asked for again."""
        held = self._scratch.get(name)
        if held is None or len(held) < n:
            self._scratch[name] = held = self.backend.array((n,), dtype)
        return held

    def embed(self, out: Buffer, table: DeviceMatrix) -> None:
        planes = table.planes
        spec = kernel("embed", "embed_planes_cuda", table.format)
        if table.format in ("F32", "F16", "BF16"):
            spec, planes = kernel("embed", "embed_cuda", table.format.lower()), planes[:1]
        tokens = self.device_batch.tokens
        self.launch(spec, (self.capacity, 1), out.data, *planes, tokens, table.n_cols, out.n_rows)

    def rms_norm(self, out: Buffer, x: Buffer, weight: DeviceArray, eps: float) -> None:
        self.launch(
            kernel("rms_norm", "rms_norm_cuda"),
            (self.capacity, 1),
            *(out.data, out.width, x.data, x.width, weight, x.width, eps, x.n_rows),
        )

    def head_norm(self, out: Buffer, x: Buffer, weight: DeviceArray, eps: float) -> None:
        n_heads = x.width // self.head_dim
        self.launch(
            kernel("rms_norm", "head_norm_cuda"),
            (blocks(n_heads, 4), self.capacity),
            *(out.data, out.width, x.data, x.width, weight, self.head_dim, n_heads, eps, x.n_rows),
        )

    def matmul(
        self, outs: Sequence[Buffer], matrices: Sequence[DeviceMatrix], x: Buffer, *, add: bool = False
    ) -> None:
        modes = [ADD if add else WRITE] * len(outs)
        record_matmul(self, outs, matrices, x, modes)

    def gated_matmul(self, out: Buffer, gate: DeviceMatrix, up: DeviceMatrix, x: Buffer) -> None:
        record_matmul(self, (out, out), (gate, up), x, (WRITE, GATE))

    def rope(self, out: Buffer, x: Buffer) -> None:
        n_heads, half = x.width // self.head_dim, self.head_dim // 2
        self.launch(
            kernel("rope", "rope_cuda"),
            (blocks(n_heads * half, 512), self.capacity),
            *(out.data, x.data, x.width, n_heads, half, self._rope_table, x.n_rows),
        )

    def moe(
        self,
        x: Buffer,
        h: Buffer,
        router: DeviceMatrix,
        gate: DeviceMatrix,
        up: DeviceMatrix,
        down: DeviceMatrix,
        n_used: int,
        renormalise: bool,
    ) -> None:
        record_experts(self, x, h, (router, gate, up, down), n_used, renormalise)

    def kv_append(self, rows: KvRows, k: Buffer, v: Buffer) -> None:
        append_rows(self, rows, k, v)

    def attend_prefill(self, out: Buffer, q: Buffer, rows: KvRows) -> None:
        record_prefill_attention(self, out, q, rows)

    def attend_decode(self, out: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: KvRows) -> None:
        append_rows(self, rows, k, v)
        record_decode_attention(self, Queries.of_batch(self, out, q), rows)

    def attend_pages(self, out: Buffer, q: Buffer, k: Buffer, v: Buffer, by: Buffer, rows: Any) -> None:
        ATTENTION[type(rows)](self, out, q, k, v, by, rows)

    def attend_yakv(self, out: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: YakvRows) -> None:
        record_yakv(self, out, q, k, v, rows)

    def yakv_tail_errors(
        self, errors: Buffer, exact: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: YakvRows
    ) -> None:
        record_tail_errors(self, errors.data, exact, q, k, v, rows)

    def keep_rows(self, kept: Sequence[Buffer], xs: Sequence[Buffer]) -> None:
        for buffer, x in zip(kept, xs, strict=True):
            held: DeviceArray = buffer.data
            self.launch(
                kernel("keep_rows", "keep_rows_cuda"),
                (blocks(buffer.width, 256), self.capacity),
                *(held, len(held), buffer.width, x.data, x.width, self.device_batch.positions, x.n_rows),
            )
