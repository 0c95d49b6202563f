"""A kernel of a cubin on a device, and launching it."""

from __future__ import annotations

import re
from typing import Any

from .arguments import Argument, Arguments
from .cubin import Cubin, Manifest
from .device import Device
from .driver import DeviceError, call, constant
from .stream import Stream

UNASKED_SHARED_BYTES = 48 * 1024  # that a block may take without the kernel's attribute being raised


class LoadedKernel:
    """One kernel on the device."""

    def __init__(self, device: Device, cubin: Cubin) -> None:
        """Raises: DeviceError where the device or its driver cannot run it."""
        self.manifest: Manifest = cubin.manifest
        check_driver(device, cubin.manifest)
        self._module: Any = call("cuModuleLoadData", cubin.code)
        self._function: Any = call("cuModuleGetFunction", self._module, cubin.manifest.symbol.encode())
        dynamic = self.manifest.shared_bytes
        taken = dynamic + self.manifest.resources.shared_bytes
        if taken > device.shared_bytes:
            raise DeviceError(
                f"kernel {self.manifest.symbol} takes {taken} bytes of shared memory; a block may take"
                f" {device.shared_bytes} on {device.name}"
            )
        if dynamic and taken > UNASKED_SHARED_BYTES:
            attribute = "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
            call("cuFuncSetAttribute", self._function, constant("CUfunction_attribute", attribute), dynamic)

    def arguments(self, *values: Argument) -> Arguments:
        """For several launches."""
        return Arguments(self.manifest.parameters, values)

    def launch(self, stream: Stream, grid: int | tuple[int, int], arguments: Arguments) -> None:
        """Asks the stream for all blocks of the grid; what the arguments point to has to stay until then."""
        x, y = grid if isinstance(grid, tuple) else (grid, 1)
        threads, shared = self.manifest.threads, self.manifest.shared_bytes
        call(
            "cuLaunchKernel",
            self._function,
            x,
            y,
            1,
            threads,
            1,
            1,
            shared,
            stream.handle,
            arguments.table,
            0,
        )

    def close(self) -> None:
        call("cuModuleUnload", self._module)


def check_driver(device: Device, manifest: Manifest) -> None:
    """Raises: DeviceError where the driver is older than the assembler that made the cubin."""
    made_by = re.search(r"nvidia-nvjitlink (\d+)\.", manifest.compilers)
    if made_by and device.cuda_version[0] < int(made_by[1]):
        major, minor = device.cuda_version
        raise DeviceError(
            f"the NVIDIA driver knows CUDA {major}.{minor}, and the cubins are of CUDA {made_by[1]}: update"
            " the driver to 580 or newer"
        )
