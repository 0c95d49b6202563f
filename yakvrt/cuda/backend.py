"""The CUDA backend: device memory, KV rows, recorders and the steps they make."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernel_build.compilers import Progress
from ..kernel_build.spec import KernelSpec
from ..kernels.chunk_layout import ChunkShape
from ..kernels.page_layout import PageShape
from ..kernels.paper_layout import PaperShape
from ..kernels.pool_shapes import PoolShape
from ..kernels.yakv_layout import Budget, YakvShape
from ..ops import ELEMENT_BYTES, Buffer, KvRows
from ..trace_log import TraceLog
from .chunk_pools import ChunkPools
from .device import Device
from .device_array import DeviceArray
from .device_kernels import Kernels, built_kernels, compiled_kernels
from .device_matrix import DeviceMatrix
from .device_rows import DeviceRows
from .device_states import DeviceStates
from .driver import DeviceError, after_loss
from .kernel_choice import gather_blocks
from .memory import PinnedMemory
from .page_pools import PagePools
from .paper_pools import PaperPools
from .pinned_pool import PinnedPool
from .pinned_pool import Progress as PinProgress
from .recorder import CudaRecorder
from .stage_clock import TRACKS
from .step import CudaStep
from .stream import Stream
from .streams import Streams
from .upload_ring import UploadRing
from .yakv_pools import YakvPools
from .yakv_slots import YakvSlots

POOLS: dict[type[PoolShape], Any] = {  # by what tells their form
    PageShape: PagePools,
    ChunkShape: ChunkPools,
    PaperShape: PaperPools,
}


def _give_back(device: Device, streams: Streams, kernels: Kernels, held: ExitStack) -> None:
    try:
        with ExitStack() as rest:  # the last one first
            rest.callback(device.close)
            rest.callback(streams.close)
            rest.callback(kernels.close)
            rest.callback(held.close)
            rest.callback(streams.synchronise)
    except DeviceError as error:
        if not after_loss(error):
            raise


class CudaBackend:
    """Owns a device, streams, the loaded kernels and all memory that it hands out; close() gives it back, or
    the end of its last user.
    """

    n_threads = 1  # of the host's
    layers_under_way = 2  # of a prompt: one is stored while the next computes

    def __init__(
        self,
        device: Device,
        cubins: Path | None,
        progress: Progress | None = None,
        *,
        kv_on_host: bool = False,
        pin_progress: PinProgress | None = None,
    ) -> None:
        """cubins: what `yakvrt kernels build` made, None compiles what is needed. kv_on_host: rows that a KV
        method keeps on the host rest in pinned memory. progress is told of kernels that are compiled.
        Raises: DeviceError.
        """
        self.device, self.kv_on_host = device, kv_on_host
        self.gather_blocks = gather_blocks(device.name)
        self._kernels = built_kernels(self.device, cubins) if cubins else compiled_kernels(self.device)
        self._progress, self._pin_progress = progress, pin_progress
        self._streams = Streams()
        self._held = ExitStack()  # gives back what was handed out
        self._steps: list[CudaStep] = []
        self._fetched: PinnedMemory | None = None
        self._log: TraceLog | None = None
        self._close = weakref.finalize(self, _give_back, device, self._streams, self._kernels, self._held)
        self._close.atexit = False  # another thread may still load; the driver gives back what a process had

    def close(self) -> None:
        """Waits for what is under way; goes on behind what fails. Raises: DeviceError, not of a lost GPU."""
        self._close()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """As Backend.scope(). Raises: DeviceError."""
        outer = self._held, self._steps, self._fetched
        self._held, self._steps = ExitStack(), list(self._steps)
        try:
            yield
        finally:
            inner = self._held
            self._held, self._steps, self._fetched = outer
            with inner:
                self._streams.synchronise()

    @property
    def stream(self) -> Stream:
        """The one that is asked: within beside(), another."""
        return self._streams.now

    def beside(self) -> AbstractContextManager[None]:
        """As Streams.beside(). Raises: DeviceError."""
        return self._streams.beside()

    def settle(self) -> None:
        """As Streams.settle(). Raises: DeviceError."""
        self._streams.settle()

    @property
    def arch(self) -> str:
        """The architecture whose cubins it loads."""
        return self._kernels.arch

    def decode_rows(self, n: int) -> int:
        """A power of two: every number of rows is a graph of its own."""
        return 1 << (n - 1).bit_length()

    def prepare(self, specs: Iterable[KernelSpec]) -> None:
        """Raises: RuntimeError where a kernel does not compile."""
        self._kernels.prepare(specs, self._progress)

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """Device memory that holds anything at first. Raises: DeviceError."""
        self.stream.enter()
        array = DeviceArray(shape, dtype)
        self._held.callback(array.free)
        return array

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> PinnedMemory:
        """Host memory for numbers, which kernels read and write where it lies. Raises: DeviceError."""
        self.stream.enter()
        memory = PinnedMemory(math.prod(shape) * np.dtype(dtype).itemsize)
        self._held.callback(memory.free)
        return memory

    def pinned_pool(self, n_bytes: int) -> PinnedPool:
        """The same in one piece that may be large. Raises: DeviceError."""
        self.stream.enter()
        pool = PinnedPool(self.device, n_bytes, self._pin_progress)
        self._held.callback(pool.free)
        return pool

    def put(self, values: np.ndarray) -> DeviceArray:
        """A copy on the device. Raises: DeviceError."""
        array = self.array(values.shape, values.dtype)
        array.put(values, self.stream)
        return array

    def buffer(self, n_rows: int, width: int) -> Buffer:
        """Raises: DeviceError."""
        return Buffer(self.array((n_rows, width), np.float32), width, np.full(1, n_rows, np.int64))

    def launch(self, spec: KernelSpec, grid: tuple[int, int], *arguments: Any) -> None:
        """Asks the stream for a launch outside of any step. Raises: as prepare(), and Kernels.load()."""
        self.prepare([spec])
        loaded = self._kernels.load(spec)
        loaded.launch(self.stream, grid, loaded.arguments(*arguments))

    def upload_ring(self, target: DeviceArray) -> UploadRing:
        """A way for small arrays to the device that waits for nothing. Raises: DeviceError."""
        ring = UploadRing(target, self.pinned)
        self._held.callback(ring.close)
        return ring

    def write(self, x: Buffer, rows: np.ndarray) -> None:
        held: DeviceArray = x.data
        held.put(rows, self.stream)

    def read(self, x: Buffer, first: int, last: int) -> np.ndarray:
        """Through pinned memory, which the next call uses again. Raises: DeviceError."""
        held: DeviceArray = x.data
        shape = last - first, *held.shape[1:]
        n_bytes = math.prod(shape) * held.dtype.itemsize
        if self._fetched is None or self._fetched.n_bytes < n_bytes:
            self._fetched = self.pinned((n_bytes,), np.uint8)
        rows: np.ndarray = self._fetched.array[:n_bytes].view(held.dtype).reshape(shape)
        held.download(first, rows, self.stream)
        self.stream.synchronise()
        return rows

    def copy(self, to: Buffer, at: int, source: Buffer, first: int, n: int) -> None:
        """Waits for nothing. Raises: DeviceError."""
        if n:
            held: DeviceArray = to.data
            held.copy_rows(at, source.data, first, n, self.stream)

    def clear(self, x: Buffer) -> None:
        """Waits for nothing. Raises: DeviceError."""
        held: DeviceArray = x.data
        held.clear(self.stream)

    def hidden_states(self, n_rows: int, x: Buffer) -> DeviceStates:
        """Raises: DeviceError."""
        self.stream.enter()
        return DeviceStates(n_rows, x.width, self.stream)

    def sample(self, weight: DeviceMatrix | DeviceArray) -> bytes:
        if isinstance(weight, DeviceMatrix):
            return weight.sample(self.stream)
        return weight.get(len(weight), self.stream).tobytes()

    def kv_rows(
        self, n_layers: int, n_slots: int, n_kv_heads: int, n_tokens: int, head_dim: int, kind: str
    ) -> list[KvRows]:
        """Exact KV rows per layer: [slot, KV head, position, D]; 16-bit numbers lie in pairs, as uint32."""
        head_bytes = n_tokens * head_dim * ELEMENT_BYTES[kind]
        shape = (n_slots * n_kv_heads * head_bytes // 4,)
        number = np.float32 if kind == "f32" else np.uint32
        return [
            KvRows(
                self.array(shape, number),
                self.array(shape, number),
                n_kv_heads * head_bytes,
                head_bytes,
                kind,
            )
            for _ in range(n_layers)
        ]

    def slot_rows(self, rows: KvRows, slot: int, n_kv_heads: int, head_dim: int) -> DeviceRows:
        return DeviceRows(rows, slot, n_kv_heads, head_dim, self.stream)

    def page_pools(
        self,
        sizes: tuple[int, int, int, int],
        shape: PoolShape,
        most: tuple[int, int],
        staging: KvRows,
    ) -> Any:
        """As Backend.page_pools(). Raises: DeviceError."""
        return POOLS[type(shape)](self, sizes, shape, most, staging)

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
    ) -> YakvSlots:
        """As Backend.yakv_pools(). Raises: ValueError, DeviceError."""
        sizes = n_layers, n_slots, n_kv_heads, n_tokens
        pools = YakvPools(self, *sizes, shape, budget, on_host=self.kv_on_host, n_places=n_places)
        return YakvSlots(self, pools, n_kv_heads, staging)

    def record(
        self,
        capacity: int,
        *,
        inv_freq: np.ndarray,
        rope_scale: float,
        heads: tuple[int, int, int],
    ) -> CudaRecorder:
        """A recorder for steps of up to `capacity` rows. heads: (n_heads, n_kv_heads, head_dim)."""
        return CudaRecorder(self, capacity, inv_freq, rope_scale, heads)

    def finish(self, recorder: CudaRecorder) -> CudaStep:
        """Loads what was recorded. Raises: as prepare(), and as CudaStep."""
        self.prepare(recorder.specs)
        ring = self.upload_ring(recorder.device_numbers)
        step = CudaStep(recorder, self._kernels, ring, self._streams)
        step.log = self._log
        self._steps.append(step)
        self._held.callback(step.close)
        return step

    def trace(self, log: TraceLog | None) -> None:
        """Every part of a step then waits for its end."""
        self._log = log
        for step in self._steps:
            step.log = log
        if log:
            for track, name in TRACKS.items():
                log.name_track(track, name)
