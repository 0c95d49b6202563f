"""Records the model's ops as rows of a tape: which kernel, on which memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.attend import PARTIAL_PAD, scratch_floats
from ..kernels.tile_layout import LAYOUTS
from ..ops import Batch, Buffer, KvRows
from .features import host_features
from .kernel_spec import kernel
from .memory import ROW_FLOATS, aligned_array, padded
from .pack_size import pack_size
from .record_experts import record_experts
from .tape import Tape

if TYPE_CHECKING:
    from .tiled_matrix import TiledMatrix


class Recorder:
    """One step under recording (ops.Ops). Scratch memory is shared by all its ops, which run one after the
    other.
    """

    def __init__(
        self,
        n_threads: int,
        capacity: int,
        n_logits: int,
        inv_freq: np.ndarray,
        rope_scale: float,
        heads: tuple[int, int, int],
    ) -> None:
        self.tape = Tape()
        self.batch = Batch.empty(capacity)
        self._n_threads, self.capacity, self._n_logits = n_threads, capacity, n_logits
        self._n_heads, self._n_kv_heads, self._head_dim = heads
        self._scratch: dict[str, np.ndarray] = {}
        self._numbers: dict[float, np.ndarray] = {}
        self._rope_table = aligned_array((capacity, self._head_dim), np.float32)
        self.tape.add(
            kernel("rope", "rope_table_cpu"),
            self._rope_table,
            self.batch.positions,
            inv_freq.astype(np.float32),
            self._head_dim // 2,
            self.batch.n_rows,
            self._number(rope_scale),
            barrier=False,  # the embedding that follows does not read it
        )

    def buffer(self, width: int, *, for_logits: bool = False) -> Buffer:
        capacity = self._n_logits if for_logits else self.capacity
        rows = self.batch.n_logits if for_logits else self.batch.n_rows
        shape = (padded(capacity, pack_size(capacity)), padded(width, ROW_FLOATS))
        return Buffer(aligned_array(shape, np.float32, zeroed=True), width, rows)

    def embed(self, out: Buffer, table: TiledMatrix) -> None:
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
        self._norm(out, x, weight, eps, x.width, 1)

    def head_norm(self, x: Buffer, weight: np.ndarray, eps: float) -> None:
        self._norm(x, x, weight, eps, self._head_dim, x.width // self._head_dim)

    def _norm(
        self, out: Buffer, x: Buffer, weight: np.ndarray, eps: float, width: int, n_segments: int
    ) -> None:
        self.tape.add(
            kernel("rms_norm", "rms_norm_cpu"),
            out.data,
            out.data.strides[0],
            x.data,
            x.data.strides[0],
            weight,
            width,
            n_segments,
            x.n_rows,
            self._number(eps),
        )

    def matmul(
        self, outs: Sequence[Buffer], matrices: Sequence[TiledMatrix], x: Buffer, *, add: bool = False
    ) -> None:
        capacity = len(x.data) if len(x.data) > 1 else 1
        self.matmul_places(outs, matrices, x.data, x.n_rows, None, pack_size(capacity), None, add)

    def matmul_places(
        self,
        outs: Sequence[Buffer],
        matrices: Sequence[TiledMatrix],
        x: np.ndarray,
        n_rows: np.ndarray,
        row_index: np.ndarray | None,
        pack: int,
        experts: np.ndarray | None,
        add: bool,
    ) -> None:
        """matmul over rows picked by row_index (all, if None), in packs that each may name an expert."""
        for quantised in sorted({not LAYOUTS[m.format].is_float for m in matrices}):
            siblings = [
                (o, m) for o, m in zip(outs, matrices, strict=True) if LAYOUTS[m.format].is_float != quantised
            ]
            n_cols = siblings[0][1].n_cols
            places = len(row_index) if row_index is not None else padded(len(x), pack)
            codes = self.shared("codes", places * n_cols * (1 if quantised else 4))
            scales = self.shared("scales", places * n_cols // 32 * 16 if quantised else 0)
            self.tape.add(
                kernel("pack_activations", "pack_activations_cpu", pack, quantised),
                codes,
                scales,
                x,
                x.strides[0],
                n_cols,
                n_rows,
                row_index,
            )
            for i, (out, matrix) in enumerate(siblings):
                self.tape.add(
                    kernel("matmul", "matmul_cpu", matrix.format, pack),
                    out.data,
                    out.data.strides[0],
                    matrix.tiles,
                    matrix.n_tiles,
                    n_cols,
                    codes,
                    scales,
                    n_rows,
                    matrix.bias,
                    int(add),
                    experts,
                    # one token: the tiles are shared out evenly, siblings need not wait for each other
                    barrier=pack > 1 or i == len(siblings) - 1,
                )

    def rope(self, out: Buffer, x: Buffer) -> None:
        self.tape.add(
            kernel("rope", "rope_cpu"),
            out.data,
            x.data,
            x.data.strides[0],
            x.width // self._head_dim,
            self._head_dim // 2,
            self._rope_table,
            x.n_rows,
        )

    def silu_mul(self, out: Buffer, gate: Buffer, up: Buffer) -> None:
        width = padded(out.width, 16)
        self.tape.add(
            kernel("silu_mul", "silu_mul_cpu"),
            out.data,
            gate.data,
            up.data,
            out.data.strides[0],
            width,
            out.n_rows,
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
            kernel("kv_append", "kv_append_cpu", self._head_dim, rows.kind),
            rows.k,
            rows.v,
            rows.slot_bytes,
            rows.head_bytes,
            k.data,
            v.data,
            k.data.strides[0],
            self._n_kv_heads,
            self.batch.slots,
            self.batch.positions,
            self.batch.n_rows,
        )

    def attend_prefill(self, out: Buffer, q: Buffer, rows: KvRows) -> None:
        self._attend("attend_prefill_cpu", out.data, q, rows)

    def attend_decode(self, out: Buffer, q: Buffer, rows: KvRows) -> None:
        floats = self.capacity * self._n_threads * self._n_heads * (self._head_dim + PARTIAL_PAD)
        partials = self.shared("partials", floats * 4)
        self._attend("attend_decode_cpu", partials, q, rows)
        self.tape.add(
            kernel("attend", "merge_partials_cpu", self._head_dim),
            out.data,
            out.data.strides[0],
            partials,
            self._n_heads,
            self.batch.n_rows,
        )

    def _attend(self, builder: str, out: np.ndarray, q: Buffer, rows: KvRows) -> None:
        group = self._n_heads // self._n_kv_heads
        per_thread = padded(scratch_floats(group, self._head_dim, host_features().avx512), ROW_FLOATS) * 4
        self.tape.add(
            kernel("attend", builder, group, self._head_dim, rows.kind),
            out,
            q.data,
            q.data.strides[0],
            rows.k,
            rows.v,
            rows.slot_bytes,
            rows.head_bytes,
            self.batch.slots,
            self.batch.positions,
            self.batch.n_rows,
            self._n_kv_heads,
            self._number(self._head_dim**-0.5),
            self.shared("attention", per_thread * self._n_threads),
            per_thread,
        )

    def take_logit_rows(self, out: Buffer, x: Buffer) -> None:
        self.tape.add(
            kernel("embed", "take_rows_cpu"),
            out.data,
            out.data.strides[0],
            x.data,
            x.data.strides[0],
            x.width,
            self.batch.logit_rows,
            out.n_rows,
        )

    def shared(self, name: str, n_bytes: int) -> np.ndarray:
        """Scratch of at least n_bytes under a name; a larger demand gets new memory, the old stays with its
        ops.
        """
        held = self._scratch.get(name)
        if held is None or held.nbytes < n_bytes:
            held = self._scratch[name] = aligned_array((n_bytes,), np.uint8, zeroed=True)
        part: np.ndarray = held[:n_bytes]
        return part

    def _number(self, value: float) -> np.ndarray:
        """A float32 the kernels read by address."""
        return self._numbers.setdefault(value, np.array([value], np.float32))
