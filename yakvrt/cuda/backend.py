"""The CUDA backend: device memory, KV rows, recorders and the steps they make."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..ops import ELEMENT_BYTES, Buffer, KvRows
from .arguments import Arguments
from .device import Device
from .device_array import DeviceArray
from .loaded_kernel import KernelDirectory, LoadedKernel
from .memory import PinnedMemory
from .recorder import CudaRecorder, Launch
from .stream import Stream


class CudaStep:
    """A recorded step: fill `batch`, then run its parts."""

    def __init__(self, recorder: CudaRecorder, kernels: KernelDirectory, stream: Stream) -> None:
        """Raises: DeviceError, and ValueError for a kernel that the directory lacks."""
        self.batch = recorder.batch
        self._on_device, self._stream = recorder.device_batch, stream
        self._parts = []
        for part in recorder.parts:
            pieces: list[object] = []
            for piece in part:
                if isinstance(piece, Launch):
                    loaded = kernels.load(piece.kernel)
                    pieces.append((loaded, piece.grid, loaded.arguments(*piece.arguments)))
                else:
                    pieces.append(piece)
            self._parts.append(pieces)

    def run(self, part: int = 0) -> None:
        """Asks the stream for the step; a piece of plain Python waits for what comes before it."""
        for name in self.batch.__slots__:
            getattr(self._on_device, name).put(getattr(self.batch, name), self._stream)
        for piece in self._parts[part]:
            if isinstance(piece, tuple):
                loaded, grid, arguments = piece
                assert isinstance(loaded, LoadedKernel)
                assert isinstance(arguments, Arguments)
                loaded.launch(self._stream, grid, arguments)
            else:
                assert callable(piece)
                self._stream.synchronise()
                piece()


class CudaBackend:
    """Owns a device, a stream, the loaded kernels and all memory that it hands out; close() gives it back."""

    def __init__(self, cubins: Path, number: int = 0) -> None:
        """cubins: what `yakvrt kernels build` made. Raises: DeviceError."""
        self.device = Device(number)
        self._kernels = KernelDirectory(self.device, cubins)
        self.stream = Stream()
        self._arrays: list[DeviceArray] = []
        self._pinned: list[PinnedMemory] = []

    def close(self) -> None:
        self.stream.synchronise()
        while self._arrays:
            self._arrays.pop().free()
        while self._pinned:
            self._pinned.pop().free()
        self.stream.close()
        self._kernels.close()
        self.device.close()

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceArray:
        """Device memory that holds anything at first. Raises: DeviceError."""
        array = DeviceArray(shape, dtype)
        self._arrays.append(array)
        return array

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> PinnedMemory:
        """Host memory for numbers, which kernels read and write where it lies. Raises: DeviceError."""
        memory = PinnedMemory(math.prod(shape) * np.dtype(dtype).itemsize)
        self._pinned.append(memory)
        return memory

    def put(self, values: np.ndarray) -> DeviceArray:
        """A copy on the device. Raises: DeviceError."""
        array = self.array(values.shape, values.dtype)
        array.put(values, self.stream)
        return array

    def fetch(self, buffer: Buffer, n_rows: int) -> np.ndarray:
        """The first rows of a buffer, once what was asked before is done. Shapes: float32 [n_rows, width]."""
        held: DeviceArray = buffer.data
        return held.get(n_rows, self.stream)

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
        """Loads what was recorded. Raises: as CudaStep."""
        return CudaStep(recorder, self._kernels, self.stream)
