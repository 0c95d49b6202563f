"""Runs the host's cases of `yakvrt transfer` and makes their records."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from itertools import groupby

from yakvrt.bench_facts import build
from yakvrt.cpu.kernel_cache import KernelCache
from yakvrt.machine_facts import MachineFacts
from yakvrt.transfer.link import modelled
from yakvrt.transfer.memory import HostMemory
from yakvrt.transfer.plan import Plan
from yakvrt.transfer.records import MEASURED, TransferRecord
from yakvrt.transfer.timing import compile_kernels, stopwatch

Report = Callable[[str, int, int], None]


def records_of(planned: Plan, machine: MachineFacts, report: Report) -> Iterator[TransferRecord]:
    """Times case after case and yields a record of each as it ends, with those of the link behind it."""
    commit, number = build()
    cache = KernelCache()
    compile_kernels(cache, planned.cases, lambda done, total, name: report(f"compiling {name}", done, total))
    n_done = 0
    for pages, cases in groupby(planned.cases, lambda case: case.setting.pages):
        memory = HostMemory(pages, planned.pool_bytes, planned.out_bytes)
        huge_bytes = memory.huge_bytes
        with stopwatch(cache, memory, planned.n_samples, planned.sample_s) as watch:
            del memory  # the watch holds it, so that it is gone before that of the next pages is taken
            for case in cases:
                report(f"timing: {case.name}", n_done, len(planned.cases))
                began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                timing = watch.time(case)
                n_done += 1
                record = TransferRecord(
                    build_commit=commit,
                    build_number=number,
                    gpu_info="",
                    backends="CPU",
                    **dataclasses.asdict(machine),
                    test=case.test,
                    kind=MEASURED,
                    model="",
                    n_rows=case.n_rows,
                    row_bytes=case.row_bytes,
                    **dataclasses.asdict(case.setting),
                    huge_bytes=huge_bytes,
                    pool_bytes=planned.pool_bytes,
                    n_loops=timing.n_loops,
                    link_gbps=0.0,
                    link_latency_us=0.0,
                    verified_bytes=timing.verified_bytes,
                    test_time=began,
                    samples_ns=timing.samples_ns,
                )
                yield record
                if planned.link and case.test == "gather" and case.setting == planned.setting:
                    yield from modelled(record, planned.link)
        del watch
