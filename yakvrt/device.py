"""What runs a model: the CPU, or a GPU by its number."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .backend import Backend
    from .kernel_build.compilers import Progress
    from .memory_plan import MemoryPlan, Wanted
    from .model_source import ModelSource
    from .weights import Weights

LoadProgress = Callable[[str, int, int], None]  # what, done, total
GPU = re.compile(r"cuda:?(\d{1,4})?", re.IGNORECASE)
KV_DEVICES = ("auto", "cpu", "gpu")


class Device(Protocol):
    """One of them, chosen. close() gives back what open() and load() took."""

    @property
    def default_chunk(self) -> int:
        """Prompt tokens that it computes best at once."""

    def plan(self, wanted: Wanted) -> MemoryPlan:
        """What a model will take of every kind of memory."""

    def free_bytes(self) -> int:
        """Of the memory in which KV caches lie; on a GPU its own."""

    def open(self, progress: LoadProgress | None) -> Backend: ...

    def load(
        self, source: ModelSource, dtype: str, progress: Callable[[int, int], None] | None
    ) -> Weights: ...

    def close(self) -> None: ...


def compile_progress(progress: LoadProgress | None) -> Progress | None:
    """Of kernels, as a part of loading."""
    if progress is None:
        return None

    def compiled(done: int, total: int, symbol: str) -> None:
        progress(f"compiling kernels (first run only): {symbol}", done, total)

    return compiled


def gpu_number(name: str) -> int | None:
    """Of cuda, cuda:1, or CUDA1 as llama.cpp writes it; None for the CPU.

    Raises: ValueError for another name.
    """
    if name.lower() in ("cpu", "none"):
        return None
    found = GPU.fullmatch(name)
    if not found:
        raise ValueError(f"device {name!r} is not known; choose cpu, cuda or cuda:N")
    return int(found[1] or 0)


def open_gpu(number: int, cubins: str | Path | None, kv_device: str = "auto") -> Device:
    """Raises: DeviceError without a driver or a GPU of this number, ValueError for another kv_device or for
    what is no directory.
    """
    from .cuda_device import CudaDevice

    if cubins is not None and not Path(cubins).is_dir():
        raise ValueError(f"{cubins} is no directory; name one that python -m yakvrt kernels build -o made")
    if kv_device not in KV_DEVICES:
        raise ValueError(f"KV device {kv_device!r} is not known; choose one of {', '.join(KV_DEVICES)}")
    return CudaDevice(number, None if cubins is None else Path(cubins), kv_device)
