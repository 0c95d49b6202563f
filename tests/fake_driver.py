"""NVIDIA's driver library without a GPU, under the unmodified cuda.bindings; what is asked goes to a FakeGpu.

The library is built from fake_driver.c and loaded before cuda.bindings looks for libcuda.so.1.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fake_gpu import DriverError, FakeGpu

LAUNCH_FAILED = 719
# p: a pointer or handle; i, u: int and unsigned; q: unsigned long long
SIGNATURES = {
    "cuInit": "u",
    "cuDriverGetVersion": "p",
    "cuDeviceGetCount": "p",
    "cuDeviceGet": "pi",
    "cuDeviceGetName": "pii",
    "cuDeviceTotalMem": "pi",
    "cuDeviceGetAttribute": "pii",
    "cuDeviceGetPCIBusId": "pii",
    "cuDevicePrimaryCtxRetain": "pi",
    "cuDevicePrimaryCtxRelease": "i",
    "cuCtxSetCurrent": "p",
    "cuCtxGetCurrent": "p",
    "cuCtxSynchronize": "",
    "cuMemGetInfo": "pp",
    "cuMemAlloc": "pp",
    "cuMemFree": "p",
    "cuMemHostAlloc": "ppu",
    "cuMemHostGetDevicePointer": "ppu",
    "cuMemFreeHost": "p",
    "cuMemHostRegister": "ppu",
    "cuMemHostUnregister": "p",
    "cuMemcpyHtoDAsync": "pppp",
    "cuMemcpyDtoHAsync": "pppp",
    "cuMemcpyDtoDAsync": "pppp",
    "cuMemcpy2DAsync": "pp",
    "cuMemcpyBatchAsync": "pppppppp",
    "cuMemsetD8Async": "pupp",
    "cuStreamCreate": "pu",
    "cuStreamDestroy": "p",
    "cuStreamSynchronize": "p",
    "cuStreamWaitEvent": "ppu",
    "cuStreamWaitValue32": "ppuu",
    "cuStreamBeginCapture": "pi",
    "cuStreamEndCapture": "pp",
    "cuGraphInstantiateWithFlags": "ppq",
    "cuGraphLaunch": "pp",
    "cuGraphDestroy": "p",
    "cuGraphExecDestroy": "p",
    "cuEventCreate": "pu",
    "cuEventDestroy": "p",
    "cuEventRecord": "pp",
    "cuEventRecordWithFlags": "ppu",
    "cuEventSynchronize": "p",
    "cuEventElapsedTime": "ppp",
    "cuModuleLoadData": "pp",
    "cuModuleGetFunction": "ppp",
    "cuModuleUnload": "p",
    "cuFuncSetAttribute": "pii",
    "cuLaunchKernel": "puuuuuuuppp",
}
TYPES: dict[str, Any] = {
    "p": ctypes.c_size_t,
    "i": ctypes.c_int,
    "u": ctypes.c_uint,
    "q": ctypes.c_ulonglong,
}


class Plugged:
    """The GPU that answers; without one the driver finds none."""

    gpu: FakeGpu | None = None


def find_compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


@cache
def load_library(directory: Path) -> list[Any]:
    """Builds the library and makes it this process's libcuda.so.1; what it needs to stay alive."""
    compiler, path = find_compiler(), directory / "libcuda.so.1"
    assert compiler, "no C compiler"
    source = Path(__file__).with_name("fake_driver.c")
    options = ["-shared", "-fPIC", f"-Wl,-soname,{path.name}"]
    subprocess.run([compiler, *options, "-o", str(path), str(source)], check=True)
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.fake_driver_give.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    kept: list[Any] = [library]
    for name, letters in SIGNATURES.items():
        symbol = name.encode()
        function = ctypes.CFUNCTYPE(ctypes.c_int, *(TYPES[letter] for letter in letters))(_entry(name))
        assert library.fake_driver_give(symbol, ctypes.cast(function, ctypes.c_void_p)) == 0
        kept += [symbol, function]
    return kept


def _entry(name: str) -> Callable[..., int]:
    def called(*arguments: int) -> int:
        gpu = Plugged.gpu or FakeGpu(n_devices=0)
        try:
            gpu.asked(name)
            getattr(gpu, name)(*arguments)
        except DriverError as error:
            return error.code
        except BaseException as error:
            gpu.failures.append(error)
            return LAUNCH_FAILED
        return 0

    return called
