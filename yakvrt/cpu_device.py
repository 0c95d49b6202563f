"""The CPU as the device of a model: threads, and weights in tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .chunk_size import default_chunk
from .cpu.backend import CpuBackend
from .cpu.tile_cache import TileCache, files_identity
from .cpu.tile_memory import TileMemory
from .cpu.tile_store import TileStore, tile_bytes
from .device import compile_progress
from .free_memory import available_memory
from .memory_plan import FIXED_BYTES, MemoryPlan, Place, activation_bytes, prompt_bytes
from .weight_shapes import target_matrices, vector_bytes
from .weights import load_weights

if TYPE_CHECKING:
    from .cpu.affinity import Affinity
    from .device import LoadProgress
    from .memory_plan import Wanted
    from .model_source import ModelSource
    from .weights import Weights


class CpuDevice:
    """device.Device. "Device" and "host" pools of a KV method lie in the same memory."""

    def __init__(
        self,
        threads: int | None = None,
        affinity: Affinity | None = None,
        *,
        tile_cache: bool = False,
        mmap: bool = True,
        mlock: bool = False,
    ) -> None:
        self.default_chunk = default_chunk("cpu")
        self._threads, self._affinity = threads, affinity
        self._tile_cache, self._mmap, self._mlock = tile_cache, mmap, mlock
        self._backend: CpuBackend | None = None

    def plan(self, wanted: Wanted) -> MemoryPlan:
        config = wanted.config

        def kv_bytes(n: int) -> int:
            held = wanted.pools(n)
            return wanted.n_slots * held.slot_bytes + prompt_bytes(held, config, n)

        matrices = target_matrices(config, wanted.tensors, wanted.dtype, TileStore.layouts)
        memory = Place(
            "memory",
            available_memory(),
            weight_bytes=tile_bytes(matrices) + vector_bytes(config),
            work_bytes=activation_bytes(config, wanted.chunk) + FIXED_BYTES + wanted.cache_bytes,
            kv_bytes=kv_bytes,
        )
        return MemoryPlan((memory,), config.context_len)

    def free_bytes(self) -> int:
        return available_memory()

    def open(self, progress: LoadProgress | None) -> CpuBackend:
        """Raises: as CpuBackend."""
        self._backend = CpuBackend(self._threads, compile_progress(progress), self._affinity)
        return self._backend

    def load(self, source: ModelSource, dtype: str, progress: Callable[[int, int], None] | None) -> Weights:
        """Repacks the weights, or finds them repacked on disk."""
        assert self._backend
        n_bytes = tile_bytes(target_matrices(source.config, source.tensors, dtype, TileStore.layouts))
        cache, memory = None, None
        if self._tile_cache and source.weight_files:
            made_of = repr((source.config, dtype, source.interleaved_rope)).encode()
            cache = TileCache(files_identity(source.weight_files) + made_of, n_bytes)
            memory = cache.open(mapped=self._mmap)
        memory = memory or TileMemory.empty(n_bytes)
        weights = load_weights(
            source.config,
            source.tensors,
            TileStore(self._backend, memory),
            dtype=dtype,
            interleaved_rope=source.interleaved_rope,
            progress=progress,
        )
        if cache and not memory.filled:
            cache.keep(memory)
        if self._mlock:
            memory.lock()
        return weights

    def close(self) -> None:
        if self._backend:
            self._backend.close()
