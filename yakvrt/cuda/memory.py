"""Device memory, and host memory that a GPU reads where it lies."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .driver import DeviceError, call
from .stream import Stream

# of cuMemHostAlloc: pinned for all contexts, and mapped; written past the host's caches, who reads it slowly
PORTABLE_MAPPED, WRITE_COMBINED = 1 | 2, 4


class DeviceMemory:
    """Bytes on the device. Copies are asked of a stream: until it is synchronised, host arrays have to stay
    alive and as they are.
    """

    def __init__(self, n_bytes: int) -> None:
        """Raises: DeviceError naming what was asked for and what is free."""
        self.n_bytes = n_bytes
        try:
            self.address = int(call("cuMemAlloc", max(n_bytes, 1)))
        except DeviceError as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            free, _ = call("cuMemGetInfo")
            raise DeviceError(
                f"{n_bytes / 1e6:.0f} MB of device memory were asked for and {int(free) / 1e6:.0f} MB are"
                " free: take a smaller model, context or batch"
            ) from None

    def upload(self, array: np.ndarray, stream: Stream, first: int = 0) -> None:
        """To byte `first` and the next."""
        source = self._host(array, first)
        call("cuMemcpyHtoDAsync", self.address + first, source, array.nbytes, stream.handle)

    def download(self, array: np.ndarray, stream: Stream, first: int = 0) -> None:
        to = self._host(array, first)
        call("cuMemcpyDtoHAsync", to, self.address + first, array.nbytes, stream.handle)

    def copy_from(self, address: int, n_bytes: int, stream: Stream, first: int = 0) -> None:
        """From elsewhere on the device."""
        self._check(n_bytes, first)
        call("cuMemcpyDtoDAsync", self.address + first, address, n_bytes, stream.handle)

    def _host(self, array: np.ndarray, first: int) -> int:
        if not array.flags.c_contiguous:
            raise ValueError("an array that is not contiguous cannot be copied at once: make it so")
        self._check(array.nbytes, first)
        return array.ctypes.data

    def _check(self, n_bytes: int, first: int) -> None:
        if not 0 <= first <= first + n_bytes <= self.n_bytes:
            raise ValueError(
                f"{n_bytes} bytes from byte {first} on do not fit into {self.n_bytes} of device memory"
            )

    def free(self) -> None:
        address, self.address = self.address, 0
        if address:
            call("cuMemFree", address)


class PinnedMemory:
    """Host memory that stays where it is: `array`, uint8, as the host sees it, `address` as kernels do.

    Kernels may read and write it (zero-copy), copies from and to it do not wait for a staging buffer.
    """

    def __init__(self, n_bytes: int, *, write_combined: bool = False) -> None:
        """Raises: DeviceError naming what was asked for."""
        self.n_bytes = n_bytes
        flags = PORTABLE_MAPPED | WRITE_COMBINED if write_combined else PORTABLE_MAPPED
        try:
            self._pointer: Any = int(call("cuMemHostAlloc", max(n_bytes, 1), flags))
        except DeviceError as error:
            raise DeviceError(
                f"{n_bytes / 1e6:.0f} MB of host memory cannot be pinned ({error}): free some memory or take"
                " a smaller context"
            ) from None
        self.array = _bytes_at(self._pointer, n_bytes)
        try:
            self.address = int(call("cuMemHostGetDevicePointer", self._pointer, 0))
        except BaseException:  # also Ctrl-C
            self.free()
            raise

    @classmethod
    def within(cls, address: int, n_bytes: int) -> PinnedMemory:
        """A part of memory that something else holds and frees, under one address for host and kernels."""
        part = object.__new__(cls)
        part.n_bytes, part._pointer, part.address = n_bytes, 0, address
        part.array = _bytes_at(address, n_bytes)
        return part

    def free(self) -> None:
        """No array over the memory may be used from then on."""
        pointer, self._pointer = self._pointer, 0
        if pointer:
            self.array = np.empty(0, np.uint8)
            call("cuMemFreeHost", pointer)


def _bytes_at(address: int, n_bytes: int) -> np.ndarray:
    array: np.ndarray = np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))
    return array
