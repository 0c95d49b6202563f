"""What `yakvrt transfer --device cuda` times: the combinations of its flags that fit a GPU and its host."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from yakvrt.cuda.kernel_choice import GATHER_BLOCKS, GATHER_LOADS
from yakvrt.cuda.pinned_pool import CHUNK_BYTES
from yakvrt.memory_plan import gib
from yakvrt.terminal import UsageError
from yakvrt.transfer.gpu_case import DIRECTIONS, FILLERS, GPU_TESTS, METHODS, DeviceCase
from yakvrt.transfer.gpu_latency import LATENCIES
from yakvrt.transfer.gpu_memory import MEMORIES
from yakvrt.transfer.gpu_pinning import PINNINGS
from yakvrt.transfer.plan import (
    MAX_BYTES,
    MAX_ROW_BYTES,
    MAX_ROWS,
    MIN_SAMPLES,
    ORDERS,
    QUICK_ROW_SIZES,
    QUICK_SAMPLE_S,
    ROW_COUNTS,
    ROW_SIZES,
    SAMPLE_S,
    SIZES,
    known,
    within,
)
from yakvrt.value_lists import flat

KERNEL_LOADS = 4  # that a lane of the runtime's gather has under way
GRIDS = [GATHER_BLOCKS, *(n for n in (1, 2, 4, 8, 12, 24, 32, 64, 132) if n != GATHER_BLOCKS)]
QUICK_SIZES, QUICK_ROW_COUNTS, QUICK_GRIDS = [4 << 10, 1 << 20, 64 << 20], [8192], [GATHER_BLOCKS, 4, 64]
POOLS, QUICK_POOLS = [1 << 30 << i for i in range(7)], [256 << 20]
POOL_ROWS, POOL_ROW_BYTES = 1 << 16, 128  # that are taken from every pool
BLOCK_BYTES, QUICK_BLOCK_BYTES = 64 << 20, 16 << 20  # of transfers beside work, and for bytes in flight
PINNED, QUICK_PINNED = [64 << 20, 256 << 20, 1 << 30], [64 << 20]
NODE_BYTES = 256 << 20
MOST_GRID, MOST_OFFSET = 1 << 16, 4080
PIECE = 16  # bytes that the kernel takes at a time
MOST_PIECES = (1 << 30) - 1
WORK_BYTES = 512 << 20  # contexts, kernels, ids, work beside transfers, what is compared: estimated
HOST_FLAGS = {"pages": "--pages", "link_gbps": "--link-gbps", "latency_us": "--latency-us"}
GIVEN = (
    ("size", ("copy",), "row_bytes"),
    ("row_bytes", ("rows",), "row_bytes"),
    ("rows", ("rows",), "n_rows"),
    ("pool", ("pool",), "pool_bytes"),
)


@dataclass(frozen=True, slots=True)
class Room:
    """What a machine and its GPU have: free memory in bytes, threads that the host gathers with by default
    and at most, NUMA nodes, and whether the driver copies batches.
    """

    host_bytes: int
    device_bytes: int
    n_threads: int
    n_cpus: int
    nodes: Sequence[int]
    has_batch: bool


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """The cases in the order of running, and how they are sampled."""

    cases: list[DeviceCase]
    n_samples: int
    sample_s: float


def gpu_plan(args: argparse.Namespace, room: Room) -> GpuPlan:
    """What to run; combinations that do not fit are left out.

    Raises: UsageError, ValueError for sizes asked for that fit in no combination.
    """
    for name, flag in HOST_FLAGS.items():
        if getattr(args, name) is not None:
            raise UsageError(f"{flag} is for tests of the host alone: leave it or --device out")
    if args.repetitions < MIN_SAMPLES:
        raise UsageError(f"-r {args.repetitions} is too few for a median: give at least {MIN_SAMPLES}")
    tests = known(flat(args.test, list(GPU_TESTS)), GPU_TESTS, "--test")
    makers = {
        "latency": _latencies,
        "copy": _copies,
        "rows": _rows,
        "in-flight": _in_flight,
        "write": _writes,
        "overlap": _overlaps,
        "pinning": _pinnings,
        "pool": _pools,
        "numa": _nodes,
    }
    checked = _Values(args, room)
    wanted = [case for test in tests for case in makers[test](checked)]
    cases = [case for case in dict.fromkeys(wanted) if not _lacks(case, room)]
    _check_given(args, wanted, room)
    if not cases:
        least = _lacks(wanted[0], room) if wanted else "this machine has one NUMA node"
        raise UsageError(f"nothing to run: {least}")
    return GpuPlan(cases, args.repetitions, QUICK_SAMPLE_S if args.quick else SAMPLE_S)


class _Values:
    """The flags' values, checked, or their defaults."""

    def __init__(self, args: argparse.Namespace, room: Room) -> None:
        quick = self.quick = bool(args.quick)
        self.room = room
        self.sizes = within(args.size or (QUICK_SIZES if quick else SIZES), "--size", 64, MAX_BYTES, 64)
        self.row_sizes = within(
            args.row_bytes or (QUICK_ROW_SIZES if quick else ROW_SIZES), "--row-bytes", 16, MAX_ROW_BYTES, 16
        )
        counts = args.rows or (QUICK_ROW_COUNTS if quick else ROW_COUNTS)
        self.row_counts = within(counts, "--rows", 1, MAX_ROWS, 1)
        self.memories = known(args.memory or list(MEMORIES), MEMORIES, "--memory")
        self.directions = known(args.direction or list(DIRECTIONS), DIRECTIONS, "--direction")
        self.methods = known(args.method or list(METHODS), METHODS, "--method")
        self.orders = known(args.order or list(ORDERS), ORDERS, "--order")
        self.offsets = within(args.offset or [0, PIECE], "--offset", 0, MOST_OFFSET, PIECE)
        grids = args.grid or (QUICK_GRIDS if quick else GRIDS)
        self.grids = within(grids, "--grid", 1, MOST_GRID, 1)
        n = room.n_threads
        self.threads = list(dict.fromkeys(args.threads or [n >> i for i in range(n.bit_length())]))
        if not all(1 <= n <= room.n_cpus for n in self.threads):
            raise UsageError(
                f"-t {','.join(map(str, self.threads))}: this process may use 1 to {room.n_cpus} CPUs"
            )
        self.pools = within(args.pool or (QUICK_POOLS if quick else POOLS), "--pool", 4096, MAX_BYTES, 4096)
        self.block_bytes = min(QUICK_BLOCK_BYTES if quick else BLOCK_BYTES, self.pools[0] // 4)


def _latencies(values: _Values) -> Iterator[DeviceCase]:
    for method in LATENCIES:
        yield DeviceCase(test="latency", method=method)


def _copies(values: _Values) -> Iterator[DeviceCase]:
    """The kinds of memory one after the other. Both ways at once only from the first kind."""
    for memory in values.memories:
        for size, direction in itertools.product(values.sizes, values.directions):
            if memory == "write-combined" and direction != "h2d":
                continue  # the host reads it too slowly to be a target
            if direction != "both" or memory == values.memories[0]:
                yield _copy("copy", memory, direction, size)
    yield _copy("copy", "", "d2d", max(values.sizes))


def _copy(test: str, memory: str, direction: str, size: int, **more: Any) -> DeviceCase:
    return DeviceCase(
        test=test, method="copy", memory=memory, direction=direction, n_rows=1, row_bytes=size, **more
    )


def _rows(values: _Values) -> Iterator[DeviceCase]:
    """All sizes and numbers at the first order, offset, grid and number of threads; each other one alone."""
    for size, n in itertools.product(values.row_sizes, values.row_counts):
        for method in values.methods:
            if method == "copy-batch" and not values.room.has_batch:
                continue
            case = _of_rows(values, "rows", method, n, size)
            yield case
            if method == "copy-2d":
                continue
            yield from (replace(case, row_order=order) for order in values.orders[1:])
            yield from (replace(case, row_offset=offset) for offset in values.offsets[1:])
            if method == "zero-copy":
                yield from (replace(case, grid=grid) for grid in values.grids[1:])
            if method == "gather+copy":
                yield from (replace(case, n_threads=threads) for threads in values.threads[1:])


def _of_rows(values: _Values, test: str, method: str, n: int, size: int) -> DeviceCase:
    reads = method == "zero-copy"
    return DeviceCase(
        test=test,
        method=method,
        direction="h2d",
        memory="registered-huge",
        n_rows=n,
        row_bytes=size,
        row_order="even" if method == "copy-2d" else values.orders[0],
        row_offset=values.offsets[0],
        n_threads=values.threads[0] if method == "gather+copy" else 0,
        grid=values.grids[0] if reads else 0,
        loads=KERNEL_LOADS if reads else 0,
        pool_bytes=values.pools[0],
    )


def _in_flight(values: _Values) -> Iterator[DeviceCase]:
    case = _of_rows(values, "in-flight", "zero-copy", max(1, values.block_bytes // 1024), 1024)
    for loads, grid in itertools.product(GATHER_LOADS, sorted(values.grids)):
        yield replace(case, loads=loads, grid=grid)


def _writes(values: _Values) -> Iterator[DeviceCase]:
    """All numbers of rows at the first grid, the largest at the others."""
    for n in values.row_counts:
        case = replace(_copy("write", "pinned", "d2h", POOL_ROW_BYTES), n_rows=n)
        yield case
        grids = values.grids if n == max(values.row_counts) else values.grids[:1]
        yield from (replace(case, method="zero-copy", grid=grid, loads=KERNEL_LOADS) for grid in grids)


def _overlaps(values: _Values) -> Iterator[DeviceCase]:
    n_bytes = values.block_bytes
    reads = _of_rows(values, "overlap", "zero-copy", n_bytes // POOL_ROW_BYTES, POOL_ROW_BYTES)
    for beside in FILLERS:
        for direction in ("h2d",) if beside == "copy-d2h" else ("h2d", "d2h"):
            memory, pool = "registered-huge", values.pools[0]
            yield _copy("overlap", memory, direction, n_bytes, beside=beside, pool_bytes=pool)
        yield from (replace(reads, beside=beside, grid=grid) for grid in sorted(values.grids))


def _pinnings(values: _Values) -> Iterator[DeviceCase]:
    for size in QUICK_PINNED if values.quick else PINNED:
        for method in PINNINGS:
            case = DeviceCase(test="pinning", method=method, memory="pinned", n_rows=1, row_bytes=size)
            if method in ("allocate", "free"):
                yield case
                continue
            for memory in ("registered", "registered-huge"):
                yield replace(case, memory=memory, n_threads=values.threads[0])
                if method == "touch":
                    yield from (
                        replace(case, memory=memory, n_threads=threads) for threads in values.threads[1:]
                    )


def _pools(values: _Values) -> Iterator[DeviceCase]:
    for pool, order in itertools.product(values.pools, values.orders):
        n = min(POOL_ROWS, max(1, pool // (4 * POOL_ROW_BYTES)))
        case = _of_rows(values, "pool", "zero-copy", n, POOL_ROW_BYTES)
        yield replace(case, pool_bytes=pool, row_order=order)


def _nodes(values: _Values) -> Iterator[DeviceCase]:
    """Nothing where there is one node."""
    nodes = values.room.nodes if len(values.room.nodes) > 1 else ()
    for node, direction in itertools.product(nodes, ("h2d", "d2h")):
        yield _copy("numa", "pinned", direction, min(NODE_BYTES, max(values.sizes)), node=node)


def _lacks(case: DeviceCase, room: Room) -> str:
    """What a case would need that is not there; "" where it fits."""
    # what is copied does not cross the end of a chunk that was registered
    pool = case.pool_bytes if case.method == "zero-copy" else min(case.pool_bytes, CHUNK_BYTES)
    if pool and 2 * case.n_bytes > pool:
        remedy = "raise --pool" if pool == case.pool_bytes else "lower the sizes"
        return f"a {case.name} needs a pool of {2 * case.n_bytes} bytes and has {pool}: {remedy}"
    if case.method == "zero-copy" and case.n_bytes // PIECE > MOST_PIECES:
        return f"a {case.name} moves more than {gib(MOST_PIECES * PIECE)} at once: lower the sizes"
    for where, needed, free in (
        ("host memory", case.host_bytes + WORK_BYTES, room.host_bytes),
        ("GPU memory", case.device_bytes + WORK_BYTES, room.device_bytes),
    ):
        if needed > free:
            return f"a {case.name} needs {gib(needed)} of {where} and {gib(free)} is free: lower the sizes"
    return ""


def _check_given(args: argparse.Namespace, wanted: Sequence[DeviceCase], room: Room) -> None:
    """Sizes that were given must fit in some combination, or nothing would say that they were left out."""
    for flag, tests, field in GIVEN:
        for value in getattr(args, flag) or []:
            why = [_lacks(c, room) for c in wanted if c.test in tests and getattr(c, field) == value]
            if why and all(why):
                raise ValueError(why[0])
