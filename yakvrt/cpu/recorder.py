"""Records the model's ops as rows of a tape: which kernel, on which memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..kernel_build.spec import KernelSpec, kernel
from ..kernels.keep_rows import keep_rows_ref
from ..kernels.matmul import ADD, GATE, WRITE
from ..kernels.pack_size import PREFILL_PACK, TILE_PACK, pack_size
from ..ops import Batch, Buffer, KvRows
from ..trace_records import NO_LAYER, Stage
from .features import host_features
from .memory import aligned_array, padded
from .page_pools import PageRows, record_pages
from .record_attention import record_decode_attention, record_prefill_attention
from .record_experts import record_experts
from .record_matmul import record_matmul
from .record_yakv import record_tail_errors, record_yakv
from .step_memory import StepMemory
from .tape import HostCall, Tape

if TYPE_CHECKING:
    from .tiled_matrix import TiledMatrix
    from .yakv_pools import YakvRows


Piece = Tape | HostCall


class Recorder:
    """A step under recording (ops.Ops), in parts that run one at a time over the same buffers.

    See StepMemory for what threads compute each for themselves.
    """

    def __init__(
        self,
        n_threads: int,
        capacity: int,
        inv_freq: np.ndarray,
        rope_scale: float,
        heads: tuple[int, int, int],
    ) -> None:
        self.parts: list[list[Piece]] = []
        self.batch, self.capacity = Batch.empty(capacity), capacity
        self.n_heads, self.n_kv_heads, self.head_dim = heads
        self.prefill_pack = TILE_PACK if host_features().amx_bf16 else PREFILL_PACK
        self.memory = StepMemory(n_threads)
        self._rope_table = aligned_array((capacity, self.head_dim), np.float32)
        self._inv_freq, self._rope_scale = inv_freq.astype(np.float32), self.memory.number(rope_scale)
        self.read_next = np.zeros(3, np.int64)  # where the last matmul is told which weights come next
        self.next_part()

    @property
    def specs(self) -> list[KernelSpec]:
        pieces = (piece for part in self.parts for piece in part)
        return [spec for piece in pieces if isinstance(piece, Tape) for spec in piece.specs]

    def next_part(self) -> None:
        """What follows is recorded into a part of its own."""
        self.tape, self.in_stage = Tape(), Stage()
        self.parts.append([self.tape])
        self.tape.add(
            kernel("rope", "rope_table_cpu"),
            self._rope_table,
            self.batch.positions,
            self._inv_freq,
            self.head_dim // 2,
            self.batch.n_rows,
            self._rope_scale,
            barrier=False,  # a matmul, which ends in a barrier, comes before the first rotation
        )

    def stage(self, name: str, layer: int = NO_LAYER) -> None:
        self.in_stage = Stage(name, layer)
        self.tape.begin_stage(self.in_stage)

    def drawing(self, logits: Buffer) -> None:
        """The host draws from the logits where they lie."""

    def call(self, function: Callable[[], None]) -> None:
        self.tape = Tape()
        self.tape.begin_stage(self.in_stage)
        self.parts[-1] += [HostCall(function, self.in_stage), self.tape]

    def pack_size(self, capacity: int) -> int:
        """How many of so many rows share one pass over the weights."""
        return pack_size(capacity, self.prefill_pack)

    def read(self, x: Buffer, n: int) -> np.ndarray:
        return x.data[:n, : x.width]  # type: ignore[no-any-return]

    def write(self, x: Buffer, rows: np.ndarray) -> None:
        x.data[: len(rows), : x.width] = rows

    def keep_rows(self, kept: Sequence[Buffer], xs: Sequence[Buffer]) -> None:
        def run() -> None:
            n = int(self.batch.n_rows[0])
            for held, x in zip(kept, xs, strict=True):
                keep_rows_ref(held.data, self.read(x, n), self.batch.positions[:n])

        self.call(run)

    def buffer(self, width: int) -> Buffer:
        rows = padded(self.capacity, self.pack_size(self.capacity))
        return self.memory.buffer(rows, width, self.batch.n_rows)

    def embed(self, out: Buffer, table: TiledMatrix) -> None:
        self.memory.write_shared(out)
        self.tape.add(
            kernel("embed", "embed_cpu", table.format),
            out.data,
            out.data.strides[0],
            table.tiles,
            table.n_cols,
            self.batch.tokens,
            out.n_rows,
        )

    def rms_norm(self, out: Buffer, x: Buffer, weight: np.ndarray, eps: float) -> None:
        self._norm(out, x, weight, eps, x.width)

    def head_norm(self, out: Buffer, x: Buffer, weight: np.ndarray, eps: float) -> None:
        self._norm(out, x, weight, eps, self.head_dim)

    def _norm(self, out: Buffer, x: Buffer, weight: np.ndarray, eps: float, width: int) -> None:
        x_copy, out_copy = self.memory.copy_bytes(x), self.memory.write_private(out, x)
        self.tape.add(
            kernel("rms_norm", "rms_norm_cpu"),
            out.data,
            out.data.strides[0],
            x.data,
            x.data.strides[0],
            weight,
            width,
            x.width // width,
            x.n_rows,
            self.memory.number(eps),
            out_copy,
            x_copy,
            barrier=not out_copy,
        )

    def matmul(
        self, outs: Sequence[Buffer], matrices: Sequence[TiledMatrix], x: Buffer, *, add: bool = False
    ) -> None:
        record_matmul(self, outs, matrices, [ADD if add else WRITE] * len(outs), x)

    def gated_matmul(self, out: Buffer, gate: TiledMatrix, up: TiledMatrix, x: Buffer) -> None:
        record_matmul(self, (out, out), (gate, up), (WRITE, GATE), x)

    def rope(self, out: Buffer, x: Buffer) -> None:
        x_copy, out_copy = self.memory.copy_bytes(x), self.memory.write_private(out, x)
        self.tape.add(
            kernel("rope", "rope_cpu"),
            out.data,
            x.data,
            x.data.strides[0],
            x.width // self.head_dim,
            self.head_dim // 2,
            self._rope_table,
            x.n_rows,
            out_copy,
            x_copy,
            barrier=not out_copy,
        )

    def moe(
        self,
        x: Buffer,
        h: Buffer,
        router: TiledMatrix,
        gate: TiledMatrix,
        up: TiledMatrix,
        down: TiledMatrix,
        n_used: int,
        renormalise: bool,
    ) -> None:
        record_experts(self, x, h, (router, gate, up, down), n_used, renormalise)

    def kv_append(self, rows: KvRows, k: Buffer, v: Buffer) -> None:
        self.tape.add(
            kernel("kv_append", "kv_append_cpu", self.head_dim, rows.kind),
            rows.k,
            rows.v,
            rows.slot_bytes,
            rows.head_bytes,
            k.data,
            v.data,
            k.data.strides[0],
            self.n_kv_heads,
            self.batch.slots,
            self.batch.positions,
            self.batch.n_rows,
            self.memory.copy_bytes(k),
        )

    def attend_prefill(self, out: Buffer, q: Buffer, rows: KvRows) -> None:
        record_prefill_attention(self, out, q, rows)

    def attend_decode(self, out: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: KvRows) -> None:
        record_decode_attention(self, out, q, k, v, rows)

    def attend_pages(self, out: Buffer, q: Buffer, k: Buffer, v: Buffer, by: Buffer, rows: PageRows) -> None:
        record_pages(self, out, q, k, v, by, rows)

    def attend_yakv(self, out: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: YakvRows) -> None:
        record_yakv(self, out, q, k, v, rows)

    def yakv_tail_errors(
        self, errors: Buffer, exact: Buffer, q: Buffer, k: Buffer, v: Buffer, rows: YakvRows
    ) -> None:
        record_tail_errors(self, errors.data, exact, q, k, v, rows)
