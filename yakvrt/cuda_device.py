"""A GPU as the device of a model: weights in planes, KV pools in its memory and in pinned host memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from .chunk_size import default_chunk
from .cuda.backend import CudaBackend
from .cuda.device import Device
from .cuda.device_matrix import PlaneStore
from .kernels.device_layout import DEVICE_LAYOUTS
from .memory_plan import FIXED_BYTES, MemoryPlan, Place, activation_bytes, available_memory, prompt_bytes
from .weight_shapes import target_matrices, vector_bytes
from .weights import load_weights

if TYPE_CHECKING:
    from .config import ModelConfig
    from .kernel_build.compilers import Progress
    from .kvcache.contract import Pools
    from .model_source import ModelSource
    from .weights import SourceTensor, Weights

GPU_FIXED_BYTES = 256 << 20  # kernels, graphs, partial results of attention: estimated


class CudaDevice:
    """device.Device. "Device" pools of a KV method lie in the GPU's memory, "host" pools in pinned memory."""

    def __init__(self, number: int, cubins: Path | None) -> None:
        """Raises: DeviceError."""
        self.default_chunk = default_chunk("cuda")
        self._device, self._cubins = Device(number), cubins
        self._backend: CudaBackend | None = None

    def plan(
        self,
        config: ModelConfig,
        tensors: Mapping[str, SourceTensor],
        *,
        dtype: str,
        chunk: int,
        pools: Callable[[int], Pools],
        n_slots: int,
    ) -> MemoryPlan:
        def device_bytes(n: int) -> int:
            held = pools(n)
            return n_slots * sum(held.device.values()) + prompt_bytes(held, config, n)

        matrices = target_matrices(config, tensors, dtype, DEVICE_LAYOUTS)
        gpu = Place(
            "GPU memory",
            self._device.free_bytes(),
            weight_bytes=vector_bytes(config)
            + sum(prod(shape[:-1]) * DEVICE_LAYOUTS[kind].row_bytes(shape[-1]) for kind, shape in matrices),
            work_bytes=activation_bytes(config, chunk) + GPU_FIXED_BYTES,
            kv_bytes=device_bytes,
        )
        host = Place(
            "host memory",
            available_memory(),
            weight_bytes=0,
            work_bytes=FIXED_BYTES,
            kv_bytes=lambda n: n_slots * sum(pools(n).host.values()),
        )
        return MemoryPlan((gpu, host), config.context_len)

    def open(self, progress: Progress | None) -> CudaBackend:
        """Raises: as CudaBackend."""
        self._backend = CudaBackend(self._device, self._cubins, progress)
        return self._backend

    def load(self, source: ModelSource, dtype: str, progress: Callable[[int, int], None] | None) -> Weights:
        """Raises: DeviceError."""
        assert self._backend
        return load_weights(
            source.config,
            source.tensors,
            PlaneStore(self._backend),
            dtype=dtype,
            interleaved_rope=source.interleaved_rope,
            progress=progress,
        )

    def close(self) -> None:
        if self._backend:
            self._backend.close()
        else:
            self._device.close()
