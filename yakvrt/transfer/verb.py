"""`yakvrt transfer`: how fast rows of host memory are copied and gathered, and what a link to a GPU adds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yakvrt import terminal
from yakvrt.cli_parsing import parse
from yakvrt.device import gpu_number
from yakvrt.record_formats import Fields, Table, formats, print_records
from yakvrt.transfer.arguments import build_parser

if TYPE_CHECKING:
    from yakvrt.machine_facts import MachineFacts

Report = Callable[[str, int, int], None]
Source = Callable[[Report], Iterator[Fields]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return the exit code."""
    return terminal.run(lambda: _transfer(parse(build_parser(), argv)))


def _transfer(args: argparse.Namespace) -> int:
    from yakvrt.machine_facts import machine_facts

    machine = machine_facts()
    with ExitStack() as held:
        number = gpu_number(args.device)
        if number is None:
            records, table, sql_name = _on_host(args, machine)
        else:
            records, table, sql_name = _on_gpu(args, machine, number, held)
        if args.plot:
            _check_plot(args.plot)
        if args.html:
            _check_report(args.html)
        kept: list[dict[str, Any]] = []

        def noted(report: Report) -> Generator[Fields]:
            for record in records(report):
                kept.append(record.fields())
                yield record

        outputs = [(formats(table, sql_name)[args.output], sys.stdout)]
        try:
            # Records on a terminal show by themselves how far it is.
            with terminal.Bar("timing") as bar:
                is_shown = sys.stderr.isatty() and not sys.stdout.isatty()
                # closed before the GPU that it times, also where printing is interrupted
                with closing(noted(bar.loading if is_shown else lambda *_: None)) as shown:
                    print_records(shown, outputs)
        except KeyboardInterrupt:
            _write_files(args, kept)
            raise
        _keep_tuning(kept)
        _write_files(args, kept)
    return 0


def _on_host(args: argparse.Namespace, machine: MachineFacts) -> tuple[Source, Table[Any], str]:
    """Raises: UsageError, ValueError."""
    from yakvrt.cpu.topology import default_threads
    from yakvrt.free_memory import available_memory
    from yakvrt.transfer.host import records_of
    from yakvrt.transfer.memory import check_memory
    from yakvrt.transfer.plan import plan
    from yakvrt.transfer.records import SQL_TABLE, transfer_table

    planned = plan(args, machine, available_memory(), default_threads())
    check_memory(planned.pool_bytes, planned.out_bytes)
    return lambda report: records_of(planned, machine, report), transfer_table(), SQL_TABLE


def _on_gpu(
    args: argparse.Namespace, machine: MachineFacts, number: int, held: ExitStack
) -> tuple[Source, Table[Any], str]:
    """Raises: UsageError, ValueError, DeviceError."""
    from yakvrt.transfer.gpu import device_records, opened
    from yakvrt.transfer.gpu_records import GPU_SQL_TABLE, device_table

    gpu = held.enter_context(opened(number, args.cubins))
    planned = gpu.plan(args, machine)
    return lambda report: device_records(gpu, planned, machine, report), device_table(), GPU_SQL_TABLE


def _write_files(args: argparse.Namespace, kept: list[dict[str, Any]]) -> None:
    """What was asked for beside stdout, from the records so far. Raises: OSError."""
    if args.plot and kept:
        from yakvrt.transfer.plot import draw

        for path in draw(kept, args.plot):
            terminal.note(f"wrote {path}")
    if args.html and kept:
        from yakvrt.transfer.html import write_report

        write_report(args.html, kept)
        terminal.note(f"wrote {args.html}")


def _keep_tuning(kept: list[dict[str, Any]]) -> None:
    """Of a run to its end: half of one could name the wrong winner. The records matter more than this."""
    from yakvrt.transfer.tuning import keep_rates

    try:
        for path in keep_rates(kept):
            terminal.note(f"wrote {path}, which other commands read")
    except (OSError, RuntimeError, ValueError) as error:
        terminal.note(f"what the runtime could use is not kept: {terminal.one_line(error)}")


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


def _check_report(path: Path) -> None:
    """The same of a file. Raises: OSError."""
    import tempfile

    if path.is_dir():
        raise IsADirectoryError(21, "Is a directory", str(path))
    with tempfile.TemporaryFile(dir=path.parent):
        pass
