"""Scattered rows of pinned host memory onto the GPU: read by a kernel, or copied in one of four ways."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import numpy as np

from yakvrt.cuda.device import Device
from yakvrt.cuda.device_array import DeviceArray
from yakvrt.cuda.device_kernels import Kernels
from yakvrt.cuda.driver import call, function, record_2d
from yakvrt.cuda.memory import DeviceMemory, PinnedMemory
from yakvrt.cuda.pinned_pool import CHUNK_BYTES, MOST_THREADS, PinnedPool
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.gather_rows import gather_rows_ref
from yakvrt.transfer.gpu_case import N_SETS, DeviceCase
from yakvrt.transfer.gpu_clock import HOST, DeviceClock, Operation, Sampled
from yakvrt.transfer.gpu_copies import Turn
from yakvrt.transfer.gpu_gather import HostGather
from yakvrt.transfer.gpu_memory import SLACK, compare_device, poison_device
from yakvrt.transfer.memory import fill

SEED = 1234
MAX_ID = (1 << 31) - 1  # ids are int32
FILLED_BYTES = 64 << 20  # by a thread at a time
SOURCE_ORDER_ANY = 3  # CU_MEMCPY_SRC_ACCESS_ORDER_ANY: a source that nobody changes meanwhile
ADDRESS, SIZE = ctypes.c_void_p, ctypes.c_size_t


class CopyAttributes(ctypes.Structure):
    """CUmemcpyAttributes: order, two hints of (kind, number), flags."""

    _fields_ = (("order", ctypes.c_int), ("hints", ctypes.c_int * 4), ("flags", ctypes.c_uint))


class Rows:
    """A pool of rows on the host, and what takes them on the GPU. Owns: it, in `held`.

    `gathers`: threads of the host, by their number. Copies stay within the pool's first chunk.
    """

    def __init__(
        self,
        held: ExitStack,
        device: Device,
        kernels: Kernels,
        clock: DeviceClock,
        cases: Sequence[DeviceCase],
        gathers: dict[int, HostGather],
    ) -> None:
        """For cases of one pool_bytes. Raises: DeviceError."""
        self._clock, self._kernels, self._gathers = clock, kernels, gathers
        self.pool_bytes = cases[0].pool_bytes
        out_bytes = max(case.n_bytes for case in cases)
        pool = PinnedPool(device, self.pool_bytes)
        held.callback(pool.free)
        self.source: PinnedMemory = pool.take(self.pool_bytes)
        _fill(self.source.array)
        self.out = DeviceMemory(out_bytes + SLACK)
        held.callback(self.out.free)
        self._ids = DeviceArray((N_SETS, max(case.n_rows for case in cases)), np.int32)
        held.callback(self._ids.free)
        self._staging: PinnedMemory | None = None
        if any(case.method == "gather+copy" for case in cases):
            self._staging = PinnedMemory(out_bytes)
            held.callback(self._staging.free)

    def time(self, case: DeviceCase) -> Sampled:
        """Raises: DeviceError, RuntimeError for wrong bytes."""
        return self._clock.time(self.operation(case))

    def operation(self, case: DeviceCase) -> Operation:
        """What the case asks for; the target is poisoned."""
        makers = {
            "zero-copy": self._zero_copy,
            "gather+copy": self._gather_and_copy,
            "copy-rows": self._copy_rows,
            "copy-batch": self._copy_batch,
            "copy-2d": self._copy_2d,
        }
        poison_device(self.out, case.n_bytes, self._clock.stream)
        rows = self._rows(case)
        return makers[case.method](case, rows, id_sets(case, len(rows)))

    def _rows(self, case: DeviceCase) -> np.ndarray:
        """The pool as rows: uint8 [rows, row_bytes]."""
        n_bytes = self.pool_bytes if case.method == "zero-copy" else min(self.pool_bytes, CHUNK_BYTES)
        start = case.row_offset
        n = min((n_bytes - start) // case.row_bytes, MAX_ID)
        rows: np.ndarray = self.source.array[start : start + n * case.row_bytes].reshape(n, case.row_bytes)
        return rows

    def _check(self, case: DeviceCase, rows: np.ndarray, sets: list[np.ndarray], turn: Turn) -> int:
        ids = sets[turn.last % len(sets)]

        def truth(first: int, last: int) -> np.ndarray:
            begin, end = first // case.row_bytes, -(-last // case.row_bytes)
            skipped = first - begin * case.row_bytes
            part: np.ndarray = gather_rows_ref(rows, ids[begin:end]).reshape(-1)
            return part[skipped : skipped + last - first]

        return compare_device(case.name, case.n_bytes, self.out, self._clock.stream, truth)

    def _zero_copy(self, case: DeviceCase, rows: np.ndarray, sets: list[np.ndarray]) -> Operation:
        stream, turn = self._clock.stream, Turn()
        loaded = self._kernels.load(kernel("gather_rows", "gather_rows_cuda", case.loads))
        given = []
        for i, ids in enumerate(sets):
            on_device = self._ids.part(i, 1)
            on_device.put(ids[None], stream)
            source = self.source.address + case.row_offset
            given.append(loaded.arguments(self.out, source, on_device, case.n_rows, case.row_bytes // 16))

        def ask() -> None:
            loaded.launch(stream, case.grid, given[turn.next() % len(given)])

        return Operation(ask, partial(self._check, case, rows, sets, turn))

    def _gather_and_copy(self, case: DeviceCase, rows: np.ndarray, sets: list[np.ndarray]) -> Operation:
        assert self._staging
        stream, turn = self._clock.stream, Turn()
        staged: np.ndarray = self._staging.array[: case.n_bytes]
        block = staged.reshape(case.n_rows, case.row_bytes)
        gathers = [self._gathers[case.n_threads].prepared(block, rows, ids) for ids in sets]

        def ask() -> None:
            gathers[turn.next() % len(gathers)]()
            self.out.upload(staged, stream)
            stream.synchronise()

        return Operation(ask, partial(self._check, case, rows, sets, turn), clock=HOST)

    def _copy_rows(self, case: DeviceCase, rows: np.ndarray, sets: list[np.ndarray]) -> Operation:
        copy = function("cuMemcpyHtoDAsync", SIZE, ADDRESS, SIZE, ADDRESS)
        assert copy, "every driver has it"
        turn, stream, n = Turn(), int(self._clock.stream.handle), case.row_bytes
        pairs = [list(zip(*places(self.out, rows, ids), strict=True)) for ids in sets]

        def ask() -> None:
            for to, source in pairs[turn.next() % len(pairs)]:
                copy(to, source, n, stream)

        return Operation(ask, partial(self._check, case, rows, sets, turn), n_calls=case.n_rows)

    def _copy_batch(self, case: DeviceCase, rows: np.ndarray, sets: list[np.ndarray]) -> Operation:
        copy = batch_function()
        assert copy, "cases ask for it only where it is"
        turn, stream = Turn(), int(self._clock.stream.handle)
        sizes = np.full(case.n_rows, case.row_bytes, np.uint64)
        lists = [[np.array(words, np.uint64) for words in places(self.out, rows, ids)] for ids in sets]
        attributes, first = CopyAttributes(SOURCE_ORDER_ANY), np.zeros(1, np.uint64)

        def ask() -> None:
            to, source = lists[turn.next() % len(lists)]
            given = (to.ctypes.data, source.ctypes.data, sizes.ctypes.data, case.n_rows)
            copy(*given, ctypes.addressof(attributes), first.ctypes.data, 1, stream)

        # how a driver hands a batch on is its own affair: it may take a place in the queue for each copy
        return Operation(ask, partial(self._check, case, rows, sets, turn), n_calls=case.n_rows)

    def _copy_2d(self, case: DeviceCase, rows: np.ndarray, sets: list[np.ndarray]) -> Operation:
        turn, stream = Turn(), self._clock.stream
        pitch = int(sets[0][1] - sets[0][0]) * case.row_bytes if case.n_rows > 1 else case.row_bytes
        copies = [
            record_2d(self.out.address, rows[ids[0]].ctypes.data, pitch, case.row_bytes, case.n_rows)
            for ids in sets
        ]

        def ask() -> None:
            call("cuMemcpy2DAsync", copies[turn.next() % len(copies)], stream.handle)

        return Operation(ask, partial(self._check, case, rows, sets, turn))


def _fill(source: np.ndarray) -> None:
    """With threads: a pool may take most of a machine."""

    def part(first: int) -> None:
        fill(source[first : first + FILLED_BYTES], first // 8)

    with ThreadPoolExecutor(min(MOST_THREADS, len(os.sched_getaffinity(0)))) as threads:
        list(threads.map(part, range(0, len(source), FILLED_BYTES)))


def id_sets(case: DeviceCase, n_pool: int) -> list[np.ndarray]:
    """Ids of rows for operations in turn, none twice in one: int32 [n_rows] each."""
    rng = np.random.default_rng(SEED)
    if case.row_order == "even":
        step = n_pool // case.n_rows
        firsts = rng.integers(0, step, N_SETS)
        return [(first + np.arange(case.n_rows) * step).astype(np.int32) for first in firsts]
    sets = [rng.choice(n_pool, case.n_rows, replace=False).astype(np.int32) for _ in range(N_SETS)]
    return [np.sort(ids) for ids in sets] if case.row_order == "sorted" else sets


def places(out: DeviceMemory, rows: np.ndarray, ids: np.ndarray) -> tuple[list[int], list[int]]:
    """Addresses of targets and sources."""
    row_bytes = rows.shape[1]
    to = out.address + row_bytes * np.arange(len(ids), dtype=np.int64)
    return to.tolist(), (rows.ctypes.data + row_bytes * ids.astype(np.int64)).tolist()


def batch_function() -> Callable[..., None] | None:
    """cuMemcpyBatchAsync, where the driver has it."""
    kinds = (ADDRESS, ADDRESS, ADDRESS, SIZE, ADDRESS, ADDRESS, SIZE, ADDRESS)
    return function("cuMemcpyBatchAsync", *kinds)
