"""A GPU, opened: what it is and what its driver can load."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

from .driver import DeviceError, call, constant


@dataclass(frozen=True, slots=True)
class Listed:
    """A GPU that this process may use. `refused`: why it does not, and no bytes are free then."""

    number: int
    name: str
    memory_bytes: int
    free_bytes: int
    refused: str


def list_devices() -> list[Listed]:
    """Raises: DeviceError without a driver or a GPU."""
    call("cuInit", 0)
    return [_listed(number) for number in range(call("cuDeviceGetCount"))]


def _listed(number: int) -> Listed:
    handle = call("cuDeviceGet", number)
    facts = number, _name(handle), int(call("cuDeviceTotalMem", handle))
    try:
        with Device(number) as device:
            return Listed(*facts, device.free_bytes(), "")
    except DeviceError as error:
        return Listed(*facts, 0, str(error))


def _name(handle: Any) -> str:
    found: bytes = call("cuDeviceGetName", 128, handle)
    return found.split(b"\0")[0].decode(errors="replace")


class Device:
    """The primary context of one GPU, current in the thread that opened it.

    `shared_bytes`: the most shared memory that a block may take. `cuda_version`: the newest CUDA version of
    the driver, as (major, minor). `reads_registered`: kernels know host memory that was registered by the
    host's own addresses.
    """

    def __init__(self, number: int = 0) -> None:
        """Raises: DeviceError without a driver or a GPU of this number."""
        call("cuInit", 0)
        self.cuda_version = divmod(call("cuDriverGetVersion") // 10, 100)
        n_devices = call("cuDeviceGetCount")
        if not 0 <= number < n_devices:
            raise DeviceError(f"there is no GPU {number}: this process may use {n_devices}, from 0 on")
        self.number = number
        self._handle = call("cuDeviceGet", number)
        self.name = _name(self._handle)
        self.memory_bytes = int(call("cuDeviceTotalMem", self._handle))
        self.capability = (
            self._attribute("COMPUTE_CAPABILITY_MAJOR"),
            self._attribute("COMPUTE_CAPABILITY_MINOR"),
        )
        self.n_multiprocessors = self._attribute("MULTIPROCESSOR_COUNT")
        self.shared_bytes = self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
        self.reads_registered = bool(self._attribute("CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM"))
        self._context: Any = call("cuDevicePrimaryCtxRetain", self._handle)
        try:
            call("cuCtxSetCurrent", self._context)
        except BaseException:  # also Ctrl-C
            self.close()
            raise

    def _attribute(self, name: str) -> int:
        attribute = constant("CUdevice_attribute", f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(call("cuDeviceGetAttribute", attribute, self._handle))

    def free_bytes(self) -> int:
        """Of device memory, also of what others take."""
        call("cuCtxSetCurrent", self._context)
        free, _ = call("cuMemGetInfo")
        return int(free)

    def bus_id(self) -> str:
        """Its place on the PCI bus, as /sys/bus/pci/devices names it."""
        found: bytes = call("cuDeviceGetPCIBusId", 32, self._handle)
        return found.split(b"\0")[0].decode(errors="replace").lower()

    def synchronise(self) -> None:
        """Waits for all that was asked of the GPU."""
        call("cuCtxSetCurrent", self._context)
        call("cuCtxSynchronize")

    def close(self) -> None:
        """Gives the context back; what was allocated in it goes with the last user's."""
        if self._context is not None:
            self._context = None
            call("cuDevicePrimaryCtxRelease", self._handle)

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
