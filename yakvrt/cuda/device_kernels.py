"""The kernels of a device: where their cubins come from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..kernel_build.compilers import Progress
from ..kernel_build.spec import KernelSpec
from .architecture import architectures_for
from .compilers import cache_path, compile_missing
from .cubin import load_cubin
from .device import Device
from .driver import DeviceError
from .loaded_kernel import LoadedKernel


class Kernels:
    """Kernels of a device, loaded when first asked for. `directory`/`arch` holds their cubins."""

    def __init__(self, device: Device, directory: Path, arch: str, *, compiles: bool) -> None:
        self.arch, self.directory = arch, directory
        self._device, self._compiles = device, compiles
        self._loaded: dict[KernelSpec, LoadedKernel] = {}

    def prepare(self, specs: Iterable[KernelSpec], progress: Progress | None = None) -> None:
        """Compiles what is missing, where this process may. Raises: RuntimeError, OSError."""
        wanted = [spec for spec in dict.fromkeys(specs) if spec not in self._loaded]
        if self._compiles and wanted:
            compile_missing({self.arch: wanted}, self.directory, progress)

    def load(self, spec: KernelSpec) -> LoadedKernel:
        """Raises: ValueError as load_cubin does, DeviceError."""
        if spec not in self._loaded:
            cubin = load_cubin(self.directory, spec, self.arch)
            self._loaded[spec] = LoadedKernel(self._device, cubin)
        return self._loaded[spec]

    def close(self) -> None:
        while self._loaded:
            self._loaded.popitem()[1].close()


def built_kernels(device: Device, directory: Path) -> Kernels:
    """Those that `yakvrt kernels build` made. Raises: DeviceError for a directory without cubins for this
    GPU.
    """
    fitting = _architectures(device)
    held = [arch for arch in fitting if (directory / arch).is_dir()]
    if not held:
        raise DeviceError(
            f"{directory} holds no cubins for {_described(device)}: "
            f"run python -m yakvrt kernels build --arch {fitting[0]} -o {directory}"
        )
    return Kernels(device, directory, held[0], compiles=False)


def compiled_kernels(device: Device) -> Kernels:
    """Those that this machine compiles, once, into the user's cache.

    Raises: DeviceError, and RuntimeError naming the packages that are not installed.
    """
    return Kernels(device, cache_path(), _architectures(device)[0], compiles=True)


def _architectures(device: Device) -> list[str]:
    fitting = architectures_for(device.capability)
    if not fitting:
        raise DeviceError(f"yakvrt has no kernels for {_described(device)}")
    return fitting


def _described(device: Device) -> str:
    major, minor = device.capability
    return f"{device.name} (compute capability {major}.{minor})"
