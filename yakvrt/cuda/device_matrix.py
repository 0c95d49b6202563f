"""A weight matrix as CUDA kernels read it, and the store that makes a model's weights into such."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.device_layout import DEVICE_LAYOUTS, device_planes_ref
from .device_array import DeviceArray

if TYPE_CHECKING:
    from .backend import CudaBackend
    from .stream import Stream

SAMPLED_ROWS = 4


@dataclass(frozen=True, slots=True)
class DeviceMatrix:
    """A weight matrix in planes (kernels/device_layout.py), or `n_experts` of equal shape in a row.

    Shapes: planes [experts * rows, numbers of a row], None for one that the format lacks; bias float32
    [rows].
    """

    format: str
    n_rows: int
    n_cols: int
    n_experts: int
    planes: tuple[DeviceArray | None, ...]
    bias: DeviceArray | None = None

    @property
    def n_bytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes if plane)

    def sample(self, stream: Stream) -> bytes:
        """Format and shape, rows from all over, and the bias."""
        parts = [repr((self.format, self.n_rows, self.n_cols, self.n_experts)).encode()]
        for plane in self.planes:
            if plane:
                rows = np.linspace(0, len(plane) - 1, SAMPLED_ROWS).astype(int).tolist()
                parts += [plane.part(row, 1).get(1, stream).tobytes() for row in rows]
        if self.bias:
            parts.append(self.bias.get(len(self.bias), stream).tobytes())
        return b"".join(parts)


class PlaneStore:
    """weights.WeightStore in device memory."""

    layouts = DEVICE_LAYOUTS

    def __init__(self, backend: CudaBackend) -> None:
        self._backend = backend

    def prepare(self, formats: Iterable[str]) -> None:
        pass  # the planes are made by numpy

    def vector(self, values: np.ndarray) -> DeviceArray:
        return self._backend.put(np.asarray(values, np.float32))

    def matrix(
        self,
        kind: str,
        shape: tuple[int, ...],
        rows: Callable[[], np.ndarray],
        order: np.ndarray,
        bias: DeviceArray | None,
    ) -> DeviceMatrix:
        """Raises: DeviceError."""
        n_experts = shape[0] if len(shape) == 3 else 1
        stored = rows().reshape(n_experts, shape[-2], -1)[:, order]
        planes = device_planes_ref(kind, stored.reshape(n_experts * shape[-2], -1), shape[-1])
        held = (planes.codes, planes.high, planes.scales, planes.supers)
        arrays = tuple(self._backend.put(plane) if plane.size else None for plane in held)
        return DeviceMatrix(kind, shape[-2], shape[-1], n_experts, arrays, bias)
