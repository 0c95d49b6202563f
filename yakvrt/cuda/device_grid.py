"""Grids of HIGGS codes in device memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..higgs_grids import load_grid
from ..kernels.higgs_layout import GridTables, byte_grid, pack_tables
from .device_array import DeviceArray

if TYPE_CHECKING:
    from .backend import CudaBackend


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid's tables on the device (higgs_layout.GridTables)."""

    dim: int
    n_points: int
    memory: DeviceArray
    byte_step: float

    @property
    def words(self) -> tuple[int, float]:
        """Points as words of bytes, and their step."""
        return self.address("words8"), self.byte_step

    def address(self, table: str) -> int:
        return self.memory.address + int(getattr(GridTables(self.dim, self.n_points), table))


def device_grid(backend: CudaBackend, name: str) -> Grid:
    """Raises: DeviceError."""
    points = load_grid(name)
    step = float(byte_grid(points)[1])
    return Grid(points.shape[1], len(points), backend.put(pack_tables(points)), step)
