"""`yakvrt transfer`: how fast rows of host memory are copied and gathered, and what a link would add."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yakvrt import terminal
from yakvrt.cli_parsing import parse
from yakvrt.record_formats import formats, print_records
from yakvrt.transfer_arguments import build_parser
from yakvrt.transfer_plan import Plan, plan
from yakvrt.transfer_records import MEASURED, SQL_TABLE, TransferRecord, transfer_table

if TYPE_CHECKING:
    from yakvrt.machine_facts import MachineFacts

Report = Callable[[str, int, int], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return the exit code."""
    return terminal.run(lambda: _transfer(parse(build_parser(), argv)))


def _transfer(args: argparse.Namespace) -> int:
    from yakvrt.cpu.topology import default_threads
    from yakvrt.free_memory import available_memory
    from yakvrt.machine_facts import machine_facts
    from yakvrt.transfer_memory import check_memory

    machine = machine_facts()
    planned = plan(args, machine, available_memory(), default_threads())
    check_memory(planned.pool_bytes, planned.out_bytes)
    if args.plot:
        _check_plot(args.plot)
    outputs = [(formats(transfer_table(), SQL_TABLE)[args.output], sys.stdout)]
    kept: list[dict[str, Any]] = []

    def records(report: Report) -> Iterator[TransferRecord]:
        for record in records_of(planned, machine, report):
            if args.plot:
                kept.append(record.fields())
            yield record

    # Records on a terminal show by themselves how far it is.
    with terminal.Bar("timing") as bar:
        is_shown = sys.stderr.isatty() and not sys.stdout.isatty()
        print_records(records(bar.loading if is_shown else lambda *_: None), outputs)
    if args.plot:
        from yakvrt.transfer_plot import draw

        for path in draw(kept, args.plot):
            terminal.note(f"wrote {path}")
    return 0


def records_of(planned: Plan, machine: MachineFacts, report: Report) -> Iterator[TransferRecord]:
    """Times case after case and yields a record of each as it ends, with those of the link behind it."""
    from yakvrt.bench_facts import build
    from yakvrt.cpu.kernel_cache import KernelCache
    from yakvrt.transfer_link import modelled
    from yakvrt.transfer_memory import HostMemory
    from yakvrt.transfer_timing import compile_kernels, stopwatch

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


def _check_plot(directory: Path) -> None:
    """Fails before anything is timed.

    Raises: ValueError without matplotlib, OSError for a directory that cannot be written.
    """
    import tempfile
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ValueError("--plot draws with matplotlib, which is not there: pip install 'yakvrt[plot]'")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass


if __name__ == "__main__":
    raise SystemExit(main())
