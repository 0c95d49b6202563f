"""A GPU as the device of a model: weights in planes, KV pools in its memory and in pinned host memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from .chunk_size import default_chunk
from .cuda.backend import CudaBackend
from .cuda.device import Device
from .cuda.device_matrix import PlaneStore
from .cuda.drawing import drawing_bytes
from .cuda.page_pools import check_pages
from .cuda.yakv_pools import check_cache, check_yakv
from .device import compile_progress
from .free_memory import available_memory
from .kernels.device_layout import DEVICE_LAYOUTS
from .kernels.moe_cuda import MAX_EXPERTS
from .kernels.paper_rows import check_width
from .memory_plan import FIXED_BYTES, MemoryPlan, Place, activation_bytes, prompt_bytes
from .weight_shapes import target_matrices, vector_bytes
from .weights import load_weights

if TYPE_CHECKING:
    from .device import LoadProgress
    from .memory_plan import Wanted
    from .model_source import ModelSource
    from .weights import Weights

PINNABLE = 15 / 16  # of the host's free memory: a guess
GPU_FIXED_BYTES = 256 << 20  # kernels, graphs, partial results of attention: estimated


def step_rows(n_slots: int) -> int:
    """Rows of all the steps that may be recorded to decode up to n_slots of them: 1, 2, 4, ..."""
    return 2 * (1 << (n_slots - 1).bit_length()) - 1


class CudaDevice:
    """device.Device. "Device" pools of a KV method lie in the GPU's memory; "host" pools too, or in pinned
    memory, as kv_device says: "gpu", "cpu", or "auto" for the first that fits.
    """

    def __init__(self, number: int, cubins: Path | None, kv_device: str) -> None:
        """Raises: DeviceError."""
        self._kv_device, self._kv_on_host = kv_device, False
        self.default_chunk = default_chunk("cuda")
        self._device, self._cubins = Device(number), cubins
        self._backend: CudaBackend | None = None

    def plan(self, wanted: Wanted) -> MemoryPlan:
        """Says, with kv_device "auto", where the host's pools go. Raises: ValueError for a model, or a KV
        method's parameters, without CUDA kernels.
        """
        config, pools = wanted.config, wanted.pools
        if config.n_experts > MAX_EXPERTS:
            raise ValueError(
                f"on a GPU, a layer has up to {MAX_EXPERTS} experts, and the model's have {config.n_experts}:"
                " take the CPU"
            )
        matrices = target_matrices(config, wanted.tensors, wanted.dtype, DEVICE_LAYOUTS)
        weight_bytes = vector_bytes(config) + sum(
            prod(shape[:-1]) * DEVICE_LAYOUTS[kind].row_bytes(shape[-1]) for kind, shape in matrices
        )
        n_tokens = wanted.ctx_size or config.context_len
        asked = pools(n_tokens).gpu
        if asked.coded:
            check_yakv(asked.coded.shape)
        check_pages(asked.asking)
        check_width(asked.row_width)
        # the system never gets back what is pinned
        free = self._device.free_bytes(), int(available_memory() * PINNABLE)

        def plan(on_host: bool) -> MemoryPlan:
            def host_bytes(n: int) -> int:
                return wanted.n_slots * (sum(pools(n).host.values()) + pools(n).gpu.host)

            def gpu_bytes(n: int) -> int:
                held = pools(n)
                own = wanted.n_slots * (sum(held.device.values()) + held.gpu.device)
                own += prompt_bytes(held, config, n) - held.gpu.queries + held.gpu.next_layer
                own += step_rows(wanted.n_slots) * held.gpu.step
                return own + (wanted.n_slots * held.gpu.dense if on_host else host_bytes(n))

            def ram_bytes(n: int) -> int:
                return pools(n).gpu.queries + (host_bytes(n) if on_host else 0)

            work = activation_bytes(config, wanted.chunk) + GPU_FIXED_BYTES
            work += drawing_bytes(wanted.n_slots, config.vocab_size)
            gpu = Place("GPU memory", free[0], weight_bytes, work, gpu_bytes)
            fixed = FIXED_BYTES + wanted.cache_bytes
            host = Place("host memory", free[1], 0, fixed, ram_bytes)
            return MemoryPlan((gpu, host), config.context_len, host_rows=on_host)

        chosen = plan(on_host=False)
        self._kv_on_host = self._kv_device == "cpu" or (
            self._kv_device == "auto" and chosen.places[0].largest_context < n_tokens
        )
        if asked.coded and self._kv_on_host:
            check_cache(asked.coded.n_places, asked.coded.most_selected)
        return plan(on_host=True) if self._kv_on_host else chosen

    def free_bytes(self) -> int:
        """The lesser of both memories: some KV methods rest in the one, some in the other."""
        return min(self._device.free_bytes(), available_memory())

    def open(self, progress: LoadProgress | None) -> CudaBackend:
        """Raises: as CudaBackend."""
        self._backend = CudaBackend(
            self._device,
            self._cubins,
            compile_progress(progress),
            kv_on_host=self._kv_on_host,
            pin_progress=partial(progress, "pinning host memory (MiB)") if progress else None,
        )
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
