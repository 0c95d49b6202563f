"""What `yakvrt transfer` times: the combinations of its flags that fit this machine."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from yakvrt.terminal import UsageError
from yakvrt.value_lists import flat

if TYPE_CHECKING:
    from yakvrt.machine_facts import MachineFacts

TESTS = {
    "job": "a job of one empty operation, given to the threads from Python",
    "op": "an empty operation within a job: a call and a barrier",
    "copy": "one piece of memory, from pages at random",
    "copy-cached": "the same piece again and again, which rests in a cache that holds it",
    "gather": "scattered rows into one block",
}
COPIES = ("copy", "copy-cached")
ORDERS = ("random", "sorted")
PAGES = ("huge", "small")
MAX_BYTES = 1 << 40
MAX_ROWS = 1 << 24
MAX_ROW_BYTES = 1 << 20
MAX_OFFSET = 4095
MAX_GBPS, MAX_LATENCY_US = 1e5, 1e6
MIN_SAMPLES = 5
SIZES = [4 << 10 << i for i in range(19)]
ROW_SIZES = [32 << i for i in range(12)]
ROW_COUNTS = [64 << 2 * i for i in range(6)]
QUICK_SIZES, QUICK_ROW_SIZES, QUICK_ROW_COUNTS = [64 << 10, 1 << 20, 16 << 20], [64, 128, 1024, 16384], [1024]
# flags, the tests that they are for, and the field of a case that holds their values
GIVEN_SIZES = (
    ("size", COPIES, "row_bytes"),
    ("row_bytes", ("gather",), "row_bytes"),
    ("rows", ("gather",), "n_rows"),
)
GPU_FLAGS = ("memory", "direction", "method", "grid")
SAMPLE_S, QUICK_SAMPLE_S = 0.005, 0.001
POOL_BYTES, QUICK_POOL_BYTES = 1 << 30, 128 << 20
CACHES = 4  # a pool is at least so many times as large as the last cache


@dataclass(frozen=True, slots=True)
class Setting:
    """How a copy or gather is done: how rows follow, the bytes before the first one, pages, threads."""

    row_order: str
    row_offset: int
    pages: str
    n_threads: int


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time: n_rows rows of row_bytes. A copy is a single row; an empty operation has none.

    Order and offset are those of a gather.
    """

    test: str
    n_rows: int
    row_bytes: int
    setting: Setting

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.row_bytes

    @property
    def least_pool(self) -> int:
        """Bytes of a source that has such rows; a gather takes half of it at most: they are scattered."""
        return 2 * self.n_bytes if self.test == "gather" else self.n_bytes

    @property
    def name(self) -> str:
        return f"{self.test} of {self.n_rows} x {self.row_bytes} bytes"


@dataclass(frozen=True, slots=True)
class Link:
    """A link that times are modelled for: its rate in 10^9 bytes a second, what starting a transfer takes."""

    gbps: float
    latency_us: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The cases in the order of running, the source's size, how they are sampled, and the link to model."""

    cases: list[Case]
    pool_bytes: int
    n_samples: int
    sample_s: float
    link: Link | None
    setting: Setting
    """The first value of every flag: the link is modelled for gathers of these."""

    @property
    def out_bytes(self) -> int:
        return max(case.n_bytes for case in self.cases)


def plan(args: argparse.Namespace, machine: MachineFacts, free_bytes: int, n_threads: int) -> Plan:
    """What to run; combinations that do not fit are left out.

    Raises: UsageError, ValueError for sizes asked for that fit in no combination.
    """
    for name in GPU_FLAGS:
        if getattr(args, name):
            raise UsageError(f"--{name} is for tests of a GPU: add --device cuda or leave it out")
    if args.repetitions < MIN_SAMPLES:
        raise UsageError(f"-r {args.repetitions} is too few for a median: give at least {MIN_SAMPLES}")
    tests = known(flat(args.test, list(TESTS)), TESTS, "--test")
    settings = _settings(args, machine, n_threads)
    pool_bytes = _pool_bytes(args, machine, free_bytes)
    wanted = list(_cases(args, tests, settings))
    cases = [case for case in wanted if case.least_pool <= pool_bytes]
    _check_given(args, wanted, pool_bytes)
    if not cases:
        raise UsageError(f"nothing to run: a source of {pool_bytes} bytes is too small, raise --pool")
    kinds = list(dict.fromkeys(setting.pages for setting in settings))
    return Plan(
        cases=sorted(cases, key=lambda case: kinds.index(case.setting.pages)),  # one kind's memory at a time
        pool_bytes=pool_bytes,
        n_samples=args.repetitions,
        sample_s=QUICK_SAMPLE_S if args.quick else SAMPLE_S,
        link=_link(args, tests),
        setting=settings[0],
    )


def _settings(args: argparse.Namespace, machine: MachineFacts, n_threads: int) -> list[Setting]:
    """The first value of every flag, then the further values of each flag alone."""
    threads = args.threads or [n_threads >> i for i in range(n_threads.bit_length())]
    if not all(1 <= n <= machine.n_cpus for n in threads):
        raise UsageError(f"-t {','.join(map(str, threads))}: this process may use 1 to {machine.n_cpus} CPUs")
    values: dict[str, list[Any]] = {
        "row_order": known(args.order or list(ORDERS), ORDERS, "--order"),
        "row_offset": within(args.offset or [0, 16], "--offset", 0, MAX_OFFSET, 1),
        "pages": known(args.pages or list(PAGES), PAGES, "--pages"),
        "n_threads": list(dict.fromkeys(threads)),
    }
    first = Setting(*(some[0] for some in values.values()))
    return [first, *(replace(first, **{name: x}) for name, some in values.items() for x in some[1:])]


def _cases(args: argparse.Namespace, tests: Sequence[str], settings: Sequence[Setting]) -> Iterator[Case]:
    """All cases, those that differ in their setting one after the other: what a machine does drifts."""
    quick = args.quick
    sizes = within(args.size or (QUICK_SIZES if quick else SIZES), "--size", 64, MAX_BYTES, 64)
    row_sizes = args.row_bytes or (QUICK_ROW_SIZES if quick else ROW_SIZES)
    row_sizes = within(row_sizes, "--row-bytes", 8, MAX_ROW_BYTES, 8)
    rows = within(args.rows or (QUICK_ROW_COUNTS if quick else ROW_COUNTS), "--rows", 1, MAX_ROWS, 1)
    without_rows = list(dict.fromkeys(replace(s, row_order="", row_offset=0) for s in settings))
    for test in tests:
        if test == "gather":
            for size, n in itertools.product(row_sizes, rows):
                yield from (Case(test, n, size, setting) for setting in settings)
        elif test in COPIES:
            for size in sizes:
                yield from (Case(test, 1, size, setting) for setting in without_rows)
        else:
            first = settings[0].pages
            yield from (Case(test, 0, 0, setting) for setting in without_rows if setting.pages == first)


def _check_given(args: argparse.Namespace, wanted: Sequence[Case], pool_bytes: int) -> None:
    """Sizes that were given must fit in some combination, or nothing would say that they were left out."""
    for flag, tests, field in GIVEN_SIZES:
        for value in getattr(args, flag) or []:
            of_value = [case for case in wanted if case.test in tests and getattr(case, field) == value]
            least = min(of_value, key=lambda case: case.least_pool, default=None)
            if least and least.least_pool > pool_bytes:
                raise ValueError(
                    f"a {least.name} needs a source of {least.least_pool} bytes and has {pool_bytes}: "
                    "raise --pool or lower the sizes"
                )


def _pool_bytes(args: argparse.Namespace, machine: MachineFacts, free_bytes: int) -> int:
    if args.pool:
        return within(args.pool, "--pool", 4096, MAX_BYTES, 4096)[0]
    wanted = max(QUICK_POOL_BYTES if args.quick else POOL_BYTES, CACHES * machine.llc_bytes)
    return min(wanted, free_bytes // 4) >> 20 << 20


def _link(args: argparse.Namespace, tests: Sequence[str]) -> Link | None:
    gbps, latency_us = args.link_gbps, args.latency_us
    if gbps is None and latency_us is None:
        return None
    if gbps is None or latency_us is None:
        raise UsageError("a link is its rate and its latency: give both --link-gbps and --latency-us")
    if not (0 < gbps <= MAX_GBPS and 0 <= latency_us <= MAX_LATENCY_US):
        raise UsageError(
            f"--link-gbps {gbps:g} --latency-us {latency_us:g} is no link: give a rate above 0 up to "
            f"{MAX_GBPS:g} and a latency from 0 to {MAX_LATENCY_US:g}"
        )
    if "gather" not in tests:
        raise UsageError("a link is modelled from measured gathers: add gather to --test")
    return Link(gbps, latency_us)


def known(given: Sequence[str], names: Sequence[str] | dict[str, str], flag: str) -> list[str]:
    """Each once. Raises: UsageError for one that is none of the names."""
    for name in given:
        if name not in names:
            raise UsageError(f"{flag} {name!r} is none of {', '.join(names)}")
    return list(dict.fromkeys(given))


def within(values: Sequence[int], flag: str, least: int, most: int, multiple: int) -> list[int]:
    """Each once. Raises: UsageError for one out of range."""
    for value in values:
        if not least <= value <= most or value % multiple:
            steps = f", a multiple of {multiple}" if multiple > 1 else ""
            raise UsageError(f"{flag} {value} is out of range: give {least} to {most}{steps}")
    return list(dict.fromkeys(values))
