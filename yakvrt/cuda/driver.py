"""Calls of NVIDIA's driver; what goes wrong becomes one sentence with a remedy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any


class DeviceError(RuntimeError):
    """The GPU, its driver or its memory does not do what was asked."""


class DeviceLost(DeviceError):
    """Nothing more can be asked of the GPU by this process."""


NO_DRIVER = "there is no NVIDIA driver on this machine (libcuda.so.1): install one, or run on the CPU"
SENTENCES = {
    "CUDA_ERROR_NO_DEVICE": "there is no NVIDIA GPU that this process may use: look at CUDA_VISIBLE_DEVICES"
    " and nvidia-smi",
    "CUDA_ERROR_STUB_LIBRARY": NO_DRIVER,
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the NVIDIA driver and its kernel module have different versions:"
    " restart the machine after updating a driver",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "this GPU needs a newer NVIDIA driver: update it",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "the cubin is for another GPU: run python -m yakvrt kernels build",
    "CUDA_ERROR_INVALID_IMAGE": "the NVIDIA driver cannot read the cubin: update the driver, or build the"
    " cubin again with python -m yakvrt kernels build",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "the GPU is in exclusive use by another process: wait or take another",
    "CUDA_ERROR_DEVICES_UNAVAILABLE": "the GPU is in exclusive use by another process: wait or take another",
}
SINCE_CUDA = 13000  # functions are those of CUDA 13.0
# after these a process can do nothing more with the GPU
LOST = {
    "CUDA_ERROR_ILLEGAL_ADDRESS": "a kernel reached memory that is not its own",
    "CUDA_ERROR_MISALIGNED_ADDRESS": "a kernel reached for numbers that are not aligned",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION": "a kernel holds an instruction that this GPU does not know",
    "CUDA_ERROR_LAUNCH_TIMEOUT": "a kernel ran longer than the driver lets it",
    "CUDA_ERROR_LAUNCH_FAILED": "a kernel failed",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "the GPU's memory has an error that it cannot correct",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE": "a link between GPUs has an error that it cannot correct",
    "CUDA_ERROR_CONTAINED": "a kernel met an error of the GPU's memory",
    "CUDA_ERROR_HARDWARE_STACK_ERROR": "a kernel's stack is broken",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE": "a kernel took an address for one of another memory",
    "CUDA_ERROR_INVALID_PC": "a kernel jumped to where there is no code",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK": "a kernel ended without giving tensor memory back",
    "CUDA_ERROR_ASSERT": "an assertion of a kernel failed",
    "CUDA_ERROR_EXTERNAL_DEVICE": "another device broke what it shares with the GPU",
    "CUDA_ERROR_MPS_CLIENT_TERMINATED": "the service that shares the GPU ended this process's work",
}


@cache
def _bindings() -> ModuleType:
    try:
        from cuda.bindings import driver
    except ImportError:
        raise DeviceError(
            "launching CUDA kernels takes the package cuda-bindings: run pip install 'cuda-bindings>=13,<14'"
        ) from None
    module: ModuleType = driver
    return module


def call(name: str, *arguments: Any) -> Any:
    """What the driver's function returns behind its status: nothing, a value or a tuple of them.

    Raises: DeviceError.
    """
    bindings = _bindings()
    try:
        status, *values = getattr(bindings, name)(*arguments)
    except RuntimeError as error:  # of cuda.bindings: no library, or a library without this function
        if name == "cuInit":
            raise DeviceError(NO_DRIVER) from None
        raise DeviceError(
            f"the NVIDIA driver does not know {name} ({error}): update it to one of CUDA 13 or newer (580)"
        ) from None
    except (KeyError, ValueError) as error:  # a status newer than cuda.bindings
        raise DeviceError(f"the NVIDIA driver refused {name} with an unknown error ({error})") from None
    if int(status):
        _refuse(name, status.name)
    if len(values) < 2:
        return values[0] if values else None
    return tuple(values)


def _refuse(name: str, code: str) -> None:
    if code in LOST:
        raise DeviceLost(f"{LOST[code]}; the GPU is lost to this process, which has to be started again")
    raise DeviceError(SENTENCES.get(code, f"the NVIDIA driver refused {name}: {code}"))


def _code(status: int) -> str:
    try:
        return str(_bindings().CUresult(status).name)
    except (KeyError, ValueError):
        return f"error {status}"


def function(name: str, *kinds: Any) -> Callable[..., None] | None:
    """The driver's function for calls in a loop, which takes numbers and addresses of these ctypes and raises
    DeviceError; None where the driver is too old for it.
    """
    try:
        address, _ = call("cuGetProcAddress", name.encode(), SINCE_CUDA, 0)
    except DeviceError as error:
        if "NOT_FOUND" not in str(error):
            raise
        address = 0
    if not address:
        return None
    foreign = ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(int(address))

    def called(*arguments: Any) -> None:
        if status := foreign(*arguments):
            _refuse(name, _code(status))

    return called


def record_2d(to: int, source: int, pitch: int, width: int, n_rows: int) -> Any:
    """What cuMemcpy2DAsync takes for n_rows rows of `width` bytes, `pitch` bytes apart on the host and one
    behind the other on the device.
    """
    record = _bindings().CUDA_MEMCPY2D()
    record.srcMemoryType = constant("CUmemorytype", "CU_MEMORYTYPE_HOST")
    record.dstMemoryType = constant("CUmemorytype", "CU_MEMORYTYPE_DEVICE")
    record.srcHost, record.srcPitch, record.dstDevice, record.dstPitch = source, pitch, to, width
    record.WidthInBytes, record.Height = width, n_rows
    return record


def after_loss(error: BaseException) -> bool:
    """Whether it came of a GPU that is lost, or while that was told."""
    found: BaseException | None = error
    while found and not isinstance(found, DeviceLost):
        found = found.__context__
    return found is not None


def constant(enumeration: str, name: str) -> Any:
    """One name of an enumeration of the driver, such as CUdevice_attribute."""
    return getattr(getattr(_bindings(), enumeration), name)
