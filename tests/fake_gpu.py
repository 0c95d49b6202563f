"""What the fake driver drives: memory, streams that put their work off, kernels that run in the emulator.

Work of a stream is done when something demands it: a synchronisation, or an event that another stream waits
for; so a missing wait shows. Memory starts as bytes of 0xFF, which are NaN and -1.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from threading import local
from typing import Any

import numpy as np
from cuda_emulated_memory import NUMBERS, Memory, Pointer
from cuda_emulator import launch
from fake_cubins import built
from fake_stream import CAPTURE_UNSUPPORTED, DriverError, FakeEvent, FakeGraph, FakeStream

from yakvrt.kernels.cuda_kernel import CudaKernel

INVALID_VALUE, OUT_OF_MEMORY, INVALID_DEVICE, INVALID_HANDLE, NOT_FOUND, NOT_READY = 1, 2, 101, 400, 500, 600
NO_DEVICE, INVALID_CONTEXT, ALREADY_REGISTERED, NOT_REGISTERED = 100, 201, 712, 713
PAGE_BYTES = 4096
POISON = 0xFF
# attributes of a device; of a function
MULTIPROCESSORS, MAJOR, MINOR, READS_REGISTERED, SHARED_OPTIN = 16, 75, 76, 91, 97
MAX_DYNAMIC_SHARED = 8
UNASKED_SHARED_BYTES = 48 * 1024
# what the driver does not do while a thread captures a graph
UNCAPTURED = {
    "cuMemAlloc",
    "cuMemFree",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemHostRegister",
    "cuMemHostUnregister",
    "cuCtxSynchronize",
    "cuModuleLoadData",
}


class Function:
    """A kernel of a module."""

    def __init__(self, kernel: CudaKernel) -> None:
        self.kernel, self.dynamic_limit = kernel, UNASKED_SHARED_BYTES


def bytes_at(address: int, n_bytes: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))


def put(address: int, value: int, kind: Any = ctypes.c_uint64) -> None:
    kind.from_address(address).value = value


class FakeGpu:
    """`faults`: status that a function of the driver answers with, `lost` what all do but the context's end.
    `failures`: what kernels raised. `eager`: streams but the first, and those of graphs, do their work as
    early as they may; else as late.
    """

    def __init__(
        self,
        capability: tuple[int, int] = (9, 0),
        cuda_version: int = 13000,
        n_devices: int = 1,
        memory_bytes: int = 1 << 30,
    ) -> None:
        self.capability, self.cuda_version, self.n_devices = capability, cuda_version, n_devices
        self.memory_bytes = memory_bytes
        self.shared_bytes = 227 * 1024
        self.faults: dict[str, int] = {}
        self.lost = 0
        self.failures: list[BaseException] = []
        self.device: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.registered: dict[int, int] = {}  # bytes of host memory by their address
        self.pinnable_bytes = 1 << 40
        self.reads_registered = True
        self.handles: dict[int, Any] = {}
        self.calls: list[str] = []
        self.eager = False
        self.thread = local()  # its `context`

    def asked(self, name: str) -> None:
        self.calls.append(name)
        if name in UNCAPTURED and self.captures():
            raise DriverError(CAPTURE_UNSUPPORTED)
        if not name.startswith(("cuInit", "cuDr", "cuDev", "cuCtxS", "cuCtxG")) and not hasattr(
            self.thread, "context"
        ):
            raise DriverError(INVALID_CONTEXT)
        if self.lost and name != "cuDevicePrimaryCtxRelease":
            raise DriverError(self.lost)
        if name in self.faults:
            raise DriverError(self.faults[name])

    @property
    def held(self) -> dict[str, int]:
        """How many pieces of memory of each kind were not given back; {} for none."""
        kinds = {"device": self.device, "pinned": self.pinned, "registered": self.registered}
        return {kind: len(pieces) for kind, pieces in kinds.items() if pieces}

    def captures(self) -> bool:
        return any(isinstance(held, FakeStream) and held.graph for held in self.handles.values())

    def given(self, handle: int, kind: type) -> Any:
        found = self.handles.get(handle)
        if not isinstance(found, kind):
            raise DriverError(INVALID_HANDLE)
        return found

    def new(self, out: int, held: Any) -> None:
        handle = 4096 + 16 * len(self.calls)
        self.handles[handle] = held
        put(out, handle)

    def run_all(self) -> None:
        for held in list(self.handles.values()):
            if isinstance(held, FakeStream):
                held.run()

    def found(self, address: int) -> tuple[np.ndarray, int]:
        """The device or pinned memory that holds an address, and which of its bytes that is. Host memory that
        was registered in pieces is one for kernels.
        """
        for base, memory in [*self.device.items(), *self.pinned.items()]:
            if base <= address < base + memory.nbytes:
                return memory, address - base
        for base, n_bytes in self.registered.items():
            if base <= address < base + n_bytes:
                end = base + n_bytes
                while end in self.registered:
                    end += self.registered[end]
                return bytes_at(base, end - base), address - base
        raise IndexError(f"{address:#x} lies in no memory of the device")

    def bytes_from(self, address: int) -> np.ndarray:
        """What can be reached from an address."""
        memory, first = self.found(address)
        return memory[first:]

    def cuInit(self, flags: int) -> None:
        if not self.n_devices:
            raise DriverError(NO_DEVICE)

    def cuDriverGetVersion(self, out: int) -> None:
        put(out, self.cuda_version, ctypes.c_int)

    def cuDeviceGetCount(self, out: int) -> None:
        put(out, self.n_devices, ctypes.c_int)

    def cuDeviceGet(self, out: int, number: int) -> None:
        if not 0 <= number < self.n_devices:
            raise DriverError(INVALID_DEVICE)
        put(out, number, ctypes.c_int)

    def cuDeviceGetName(self, out: int, n: int, device: int) -> None:
        ctypes.memmove(out, b"Fake GPU\0", 9)

    def cuDeviceTotalMem(self, out: int, device: int) -> None:
        put(out, self.memory_bytes)

    def cuDeviceGetAttribute(self, out: int, attribute: int, device: int) -> None:
        values = {
            MAJOR: self.capability[0],
            MINOR: self.capability[1],
            MULTIPROCESSORS: 2,
            SHARED_OPTIN: self.shared_bytes,
            READS_REGISTERED: int(self.reads_registered),
        }
        put(out, values[attribute], ctypes.c_int)

    def cuDeviceGetPCIBusId(self, out: int, n: int, device: int) -> None:
        ctypes.memmove(out, b"FFFF:FF:1F.0\0", 13)

    def cuDevicePrimaryCtxRetain(self, out: int, device: int) -> None:
        self.new(out, "context")

    def cuDevicePrimaryCtxRelease(self, device: int) -> None:
        self.run_all()

    def cuCtxSetCurrent(self, context: int) -> None:
        self.given(context, str)
        self.thread.context = context

    def cuCtxGetCurrent(self, out: int) -> None:
        put(out, getattr(self.thread, "context", 0))

    def cuCtxSynchronize(self) -> None:
        self.run_all()

    def cuMemGetInfo(self, free: int, total: int) -> None:
        put(free, self.memory_bytes - sum(memory.nbytes for memory in self.device.values()))
        put(total, self.memory_bytes)

    def cuMemAlloc(self, out: int, n_bytes: int) -> None:
        if n_bytes + sum(memory.nbytes for memory in self.device.values()) > self.memory_bytes:
            raise DriverError(OUT_OF_MEMORY)
        put(out, self.keep(self.device, n_bytes))

    def keep(self, memories: dict[int, np.ndarray], n_bytes: int) -> int:
        memory = np.full(n_bytes, POISON, np.uint8)
        memories[memory.ctypes.data] = memory
        return memory.ctypes.data

    def cuMemFree(self, address: int) -> None:
        self.run_all()
        if self.device.pop(address, None) is None:
            raise DriverError(INVALID_VALUE)

    def cuMemHostAlloc(self, out: int, n_bytes: int, flags: int) -> None:
        put(out, self.keep(self.pinned, n_bytes))

    def cuMemHostRegister(self, address: int, n_bytes: int, flags: int) -> None:
        """What lies there is lost: nobody may count on the zeros of new pages."""
        if address % PAGE_BYTES or n_bytes % PAGE_BYTES or not n_bytes:
            raise DriverError(INVALID_VALUE)
        if self.covers(address, address + n_bytes):
            raise DriverError(ALREADY_REGISTERED)
        if sum(self.registered.values()) + n_bytes > self.pinnable_bytes:
            raise DriverError(OUT_OF_MEMORY)
        bytes_at(address, n_bytes).fill(POISON)
        self.registered[address] = n_bytes

    def covers(self, first: int, end: int) -> list[int]:
        """Registered pieces that reach into a range."""
        return [base for base, n in self.registered.items() if base < end and first < base + n]

    def cuMemHostUnregister(self, address: int) -> None:
        self.run_all()
        if self.registered.pop(address, None) is None:
            raise DriverError(NOT_REGISTERED)

    def check_host(self, address: int, n_bytes: int) -> None:
        """A copy's host memory lies within one registered piece, or in none."""
        pieces = self.covers(address, address + n_bytes)
        if pieces and not pieces[0] <= address <= address + n_bytes <= pieces[0] + self.registered[pieces[0]]:
            raise DriverError(INVALID_VALUE)

    def cuMemHostGetDevicePointer(self, out: int, address: int, flags: int) -> None:
        put(out, address)

    def cuMemFreeHost(self, address: int) -> None:
        self.run_all()
        if self.pinned.pop(address, None) is None:
            raise DriverError(INVALID_VALUE)

    def later(self, stream: int, work: Callable[[], None]) -> None:
        self.given(stream, FakeStream).ask(work)

    def cuMemcpyHtoDAsync(self, to: int, source: int, n: int, stream: int) -> None:
        memory = self.bytes_from(to)[:n]
        assert memory.nbytes == n, "a copy to the device reaches beyond its memory"
        self.check_host(source, n)
        self.later(stream, lambda: ctypes.memmove(to, source, n) and None)

    def cuMemcpyDtoHAsync(self, to: int, source: int, n: int, stream: int) -> None:
        memory = self.bytes_from(source)[:n]
        assert memory.nbytes == n, "a copy from the device reaches beyond its memory"
        self.check_host(to, n)
        self.later(stream, lambda: ctypes.memmove(to, source, n) and None)

    def cuMemcpyDtoDAsync(self, to: int, source: int, n: int, stream: int) -> None:
        assert self.bytes_from(source)[:n].nbytes == n, "a copy reaches beyond its source"
        self.cuMemcpyHtoDAsync(to, source, n, stream)

    def cuMemcpyBatchAsync(
        self,
        to: int,
        source: int,
        sizes: int,
        n: int,
        attributes: int,
        firsts: int,
        n_kinds: int,
        stream: int,
    ) -> None:
        """Copies to the device, all of one kind."""
        orders, first = (ctypes.c_int.from_address(attributes), ctypes.c_uint64.from_address(firsts))
        if n_kinds != 1 or first.value or orders.value not in (1, 2, 3):
            raise DriverError(INVALID_VALUE)
        lists = [(ctypes.c_uint64 * n).from_address(address) for address in (to, source, sizes)]
        for one in zip(*lists, strict=True):
            self.cuMemcpyHtoDAsync(*one, stream)

    def cuMemcpy2DAsync(self, copy: int, stream: int) -> None:
        """From the host to the device, from the first byte of both."""
        words = list((ctypes.c_uint64 * 16).from_address(copy))
        kinds = [words.pop(i) & 0xFFFFFFFF for i in (9, 2)]
        _, _, source, _, _, pitch, _, _, _, to, _, to_pitch, width, n_rows = words
        if kinds != [2, 1] or min(pitch, to_pitch) < width:
            raise DriverError(INVALID_VALUE)
        for row in range(n_rows):
            self.cuMemcpyHtoDAsync(to + row * to_pitch, source + row * pitch, width, stream)

    def cuStreamWaitValue32(self, stream: int, address: int, value: int, flags: int) -> None:
        """A stream that comes by before the host has written the number would wait for ever."""
        memory, first = self.found(address)
        word = memory[first : first + 4].view(np.uint32)
        if address % 4 or flags:
            raise DriverError(INVALID_VALUE)

        def wait() -> None:
            assert word[0] >= value, "a stream waits for a number that nobody writes"

        self.later(stream, wait)

    def cuMemsetD8Async(self, to: int, value: int, n: int, stream: int) -> None:
        memory = self.bytes_from(to)[:n]
        assert memory.nbytes == n, "memory is set beyond its end"
        self.later(stream, lambda: memory.fill(value))

    def cuStreamCreate(self, out: int, flags: int) -> None:
        first = not any(isinstance(held, FakeStream) for held in self.handles.values())
        self.new(out, FakeStream(eager=self.eager and not first))

    def cuStreamDestroy(self, stream: int) -> None:
        self.given(stream, FakeStream).run()
        del self.handles[stream]

    def cuStreamSynchronize(self, stream: int) -> None:
        self.given(stream, FakeStream).run()

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        self.given(stream, FakeStream).wait(self.given(event, FakeEvent))

    def cuStreamBeginCapture(self, stream: int, mode: int) -> None:
        self.given(stream, FakeStream).capture()

    def cuStreamEndCapture(self, stream: int, out: int) -> None:
        graph = self.given(stream, FakeStream).graph
        if graph is None or graph.origin is not self.handles[stream]:
            raise DriverError(INVALID_VALUE)
        graph.end()
        self.new(out, graph)

    def cuGraphInstantiateWithFlags(self, out: int, graph: int, flags: int) -> None:
        self.new(out, self.given(graph, FakeGraph))

    def cuGraphLaunch(self, graph: int, stream: int) -> None:
        self.given(graph, FakeGraph).launch(self.given(stream, FakeStream), eager=self.eager)

    def cuGraphDestroy(self, graph: int) -> None:
        self.given(graph, FakeGraph)
        del self.handles[graph]

    cuGraphExecDestroy = cuGraphDestroy

    def cuEventCreate(self, out: int, flags: int) -> None:
        self.new(out, FakeEvent())

    def cuEventDestroy(self, event: int) -> None:
        self.given(event, FakeEvent)
        del self.handles[event]

    def cuEventRecord(self, event: int, stream: int) -> None:
        self.given(event, FakeEvent).record(self.given(stream, FakeStream))

    def cuEventRecordWithFlags(self, event: int, stream: int, flags: int) -> None:
        found: FakeStream = self.given(stream, FakeStream)
        if flags and not found.graph:
            raise DriverError(INVALID_VALUE)
        self.given(event, FakeEvent).record(found, external=bool(flags))

    def cuEventSynchronize(self, event: int) -> None:
        self.given(event, FakeEvent).complete()

    def cuEventElapsedTime(self, out: int, earlier: int, later: int) -> None:
        first, last = (self.given(event, FakeEvent).seconds for event in (earlier, later))
        if first is None or last is None:
            raise DriverError(NOT_READY)
        put(out, (last - first) * 1000, ctypes.c_float)

    def cuModuleLoadData(self, out: int, code: int) -> None:
        self.new(out, ctypes.string_at(code, 4))

    def cuModuleUnload(self, module: int) -> None:
        self.given(module, bytes)
        del self.handles[module]

    def cuModuleGetFunction(self, out: int, module: int, name: int) -> None:
        self.given(module, bytes)
        kernel = built(ctypes.string_at(name).decode())
        if kernel is None:
            raise DriverError(NOT_FOUND)
        self.new(out, Function(kernel))

    def cuFuncSetAttribute(self, function: int, attribute: int, value: int) -> None:
        if attribute != MAX_DYNAMIC_SHARED or value > self.shared_bytes:
            raise DriverError(INVALID_VALUE)
        self.given(function, Function).dynamic_limit = value

    def cuLaunchKernel(self, function: int, *given: int) -> None:
        """Takes the arguments now, runs the kernel when the stream comes to it."""
        *sizes, shared, stream, table, _ = given
        found = self.given(function, Function)
        kernel: CudaKernel = found.kernel
        if sizes[2:] != [1, kernel.threads, 1, 1] or not sizes[0] or not sizes[1]:
            raise DriverError(INVALID_VALUE)
        if shared > found.dynamic_limit or shared != kernel.shared_bytes:
            raise DriverError(INVALID_VALUE)
        parameters = kernel.parameters()
        addresses = (ctypes.c_uint64 * len(parameters)).from_address(table)
        arguments = [
            self.argument(name, word, place)
            for (name, word), place in zip(parameters.items(), addresses, strict=True)
        ]
        self.later(stream, lambda: launch(kernel, (sizes[0], sizes[1]), *arguments))

    def argument(self, name: str, word: str, place: int) -> Any:
        number = np.dtype(NUMBERS[word.removesuffix("*")])
        if not word.endswith("*"):
            return np.frombuffer(ctypes.string_at(place, number.itemsize), number)[0]
        address = ctypes.c_uint64.from_address(place).value
        if not address:
            return None
        memory, first = self.found(address)
        if first % number.itemsize:
            raise ValueError(f"a {word} points to byte {first} of its memory")
        reached = memory[first:]
        numbers = reached[: reached.nbytes // number.itemsize * number.itemsize].view(number)
        return Pointer(Memory(name, numbers, origin=first % 16))
