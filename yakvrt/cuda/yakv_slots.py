"""What a KV method asks of YAKV's pools on a GPU, slot by slot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ..kernel_build.spec import kernel
from ..kernels.higgs_layout import BLOCK_TOKENS
from ..kernels.yakv_layout import indexed_end
from ..ops import Buffer, KvRows
from .device_array import DeviceArray
from .device_rows import DeviceValues
from .memory import PinnedMemory
from .yakv_pools import YakvPools, YakvRows
from .yakv_prompt import YakvPrompt

if TYPE_CHECKING:
    from ..backend import SlotValues
    from .backend import CudaBackend


class YakvSlots:
    """The slots of all layers; `staging` are the exact rows of a prompt's layers in turn. block_axis: along
    which blocks lie in what state() gives.
    """

    block_axis = 1

    def __init__(
        self, backend: CudaBackend, pools: YakvPools, n_kv_heads: int, staging: Sequence[KvRows]
    ) -> None:
        """Raises: DeviceError."""
        self.layers, self._heads = pools.layers, n_kv_heads
        self._backend, self._stream = backend, backend.stream
        self._shape = pools.layers[0].shape
        prompt = YakvPrompt(backend, pools.layers, n_kv_heads, staging)
        self.store, self.restore, self.refill = prompt.store, prompt.restore, prompt.refill

    def counted(self) -> tuple[int, int, int]:
        """Since the start: selected rows of all heads, how many of them were resident, tokens decoded."""
        each = np.array([rows.counters.get(3, self._stream) for rows in self.layers])
        return int(each[:, 0].sum()), int(each[:, 1].sum()), int(each[0, 2])

    @contextmanager
    def fitting(self, layer: int, slot: int, errors: Buffer) -> Iterator[None]:
        """Behind what is asked inside, the slot's tail counts as `errors` tell (yakv_fit.py). Steps that
        measure them count all of it by themselves, and in no statistics.
        """
        yield
        parts = self.layers[layer].tail_parts.part(slot, 1)
        self._backend.launch(kernel("yakv_fit", "best_parts_cuda"), (1, 1), parts, errors.data, parts.size)

    def set_tail_parts(self, layer: int, slot: int, parts: np.ndarray | float) -> None:
        """Shapes: [Hk, G], or one number for all."""
        held = self.layers[layer].tail_parts
        shape = 1, *held.shape[1:]
        held.part(slot, 1).put(np.broadcast_to(np.float32(parts), shape), self._stream)

    def state(self, slot: int, n_held: int) -> dict[str, SlotValues]:
        """What n_held tokens of a slot occupy, by pool and layer.

        Whoever gets it may write it, so the slot's cache of rows is emptied.
        """
        found: dict[str, SlotValues] = {}
        for layer, rows in enumerate(self.layers):
            if rows.directory:
                rows.directory.part(slot, 1).clear(self._stream)
            for name, values in self._layer_state(rows, slot, n_held).items():
                found[f"{name}.{layer}"] = values
        return found

    def _layer_state(self, rows: YakvRows, slot: int, n_held: int) -> dict[str, SlotValues]:
        shape = self._shape
        n = indexed_end(n_held, shape.n_sinks, shape.window) - shape.n_sinks
        n_blocks = n // BLOCK_TOKENS

        def on_device(array: DeviceArray, n_first: int) -> SlotValues:
            """The first ones of every head."""
            stride = array.nbytes // (array.shape[0] * self._heads)
            kept = (self._heads, n_first, *array.shape[3:])
            return DeviceValues(array, slot * self._heads * stride, stride, kept, array.dtype, self._stream)

        def pooled(memory: DeviceArray | PinnedMemory, pool_shape: tuple[int, ...]) -> SlotValues:
            if isinstance(memory, DeviceArray):
                return on_device(memory, n)
            self._stream.synchronise()
            held: np.ndarray = memory.array.view(np.uint32).reshape(pool_shape)[slot, :, :n]
            return held

        return {
            "ring_k": on_device(rows.ring_k, rows.ring_places),
            "ring_v": on_device(rows.ring_v, rows.ring_places),
            "selectors": on_device(rows.selectors, n_blocks),
            "values": on_device(rows.values, n_blocks),
            "means": on_device(rows.means, shape.head_dim),
            "tail_parts": on_device(rows.tail_parts, shape.group),
            "rows": pooled(rows.rows.codes, rows.rows_shape),
            "scales": pooled(rows.rows.scales, rows.rows_shape[:3]),
        }
