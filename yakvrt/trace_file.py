"""--trace FILE: what was noted (trace_log.py) as a file of Chrome's trace events, for ui.perfetto.dev.

A process for each test or run, a track for each thread or stream. Spans of steps hold slices of their stages;
`wait_us` is what a thread waited for others in a slice, `bytes` its even share of what the stage reads.
Counters: bytes that a decode step reads; bytes moved from the host so far, and the hit rate since the reading
before, where the KV method counts them.

Source: the Trace Event Format (Google, 2016), JSON objects.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from yakvrt import terminal

if TYPE_CHECKING:
    from yakvrt.engine import Engine
    from yakvrt.kvcache.contract import StepBytes
    from yakvrt.trace_log import Trace, TraceLog
    from yakvrt.trace_records import Label

Record = tuple[int, int, int, int, int, int]  # label, track, begin_ns, end_ns and two numbers


def add_trace_argument(parser: argparse.ArgumentParser) -> None:
    """--trace."""
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="write when each thread ran which part of which layer, for Perfetto",
    )


class Tracing:
    """The trace of --trace FILE, or none; the file gets its name at the end, also when interrupted: Ctrl-C
    while it is written ends it earlier.

    Raises: ValueError or OSError, naming the file, when it cannot be written; while nothing has been done.
    """

    def __init__(self, path: str | None) -> None:
        from yakvrt.trace_log import NO_TRACE, TraceLog

        self.log: Trace = NO_TRACE
        self._path = path
        self._readers: list[tuple[int, Callable[[int], StepBytes]]] = []
        if path is None:
            return
        from gguf_tools.output_path import output_path

        self._target = output_path(path)
        if self._target.exists() and not self._target.is_file():
            raise ValueError(f"{path} is no regular file, a trace cannot be written there; name another file")
        self.log = TraceLog(self._target.parent, path)

    @contextmanager
    def follow(self, engine: Engine, name: str) -> Iterator[None]:
        """Notes what an engine does meanwhile."""
        if self._path is None:
            yield
            return
        log: Any = self.log
        log.begin_process(name)
        self._readers.append((engine.config.n_layers, engine.step_bytes))
        engine.trace(log)
        try:
            yield
        finally:
            engine.trace(None)
            log.read_counters()

    def __enter__(self) -> Tracing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is None:
            return
        log: Any = self.log
        try:
            if log.processes:
                self._write(self._path, log)
        finally:
            log.close()

    def _write(self, path: str, log: TraceLog) -> None:
        name = None
        try:
            with (
                _held_back() as interrupts,
                _naming(path),
                tempfile.NamedTemporaryFile(
                    "w", dir=self._target.parent, suffix=".part", delete=False, encoding="ascii"
                ) as file,
            ):
                name = Path(file.name)
                n = _write_events(file, takewhile(lambda _: not interrupts, events(log, self._readers)))
                file.close()
                os.replace(name, self._target)
                size_mb = self._target.stat().st_size / 1e6
                cut = " (Ctrl-C cut it short)" if interrupts else ""
                terminal.note(
                    f"trace: {n} events{cut}, {size_mb:.1f} MB in {path}; open it in ui.perfetto.dev"
                )
        finally:
            if name:
                name.unlink(missing_ok=True)


@contextmanager
def _held_back() -> Iterator[list[int]]:
    """Ctrl-C is noted inside, where it would raise, and raises behind it; the main thread hears of it."""
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    ours = callable(before) and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


@contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = path, None
        raise


def _write_events(file: IO[str], lines: Iterable[str]) -> int:
    file.write('{"displayTimeUnit":"ms","traceEvents":[')
    n = 0
    for n, line in enumerate(lines, 1):
        file.write(f"{',' if n > 1 else ''}\n{line}")
    file.write("\n]}\n")
    return n


def events(log: TraceLog, readers: list[tuple[int, Callable[[int], StepBytes]]]) -> Iterator[str]:
    """Every event as JSON. readers: of each process, its number of layers and Engine.step_bytes."""
    for process, name in enumerate(log.processes):
        yield _metadata("process_name", process, 0, name=name)
    for (process, track), name in sorted(log.tracks.items()):
        yield _metadata("thread_name", process, track, name=name)
        yield _metadata("thread_sort_index", process, track, sort_index=track)
    step: list[Record] = []  # slices whose outermost span has not come yet
    counters = _Counters(log.began_ns)
    for records in log.records():
        for record in records.tolist():
            label = log.labels[record[0]]
            if label.is_counter:
                yield from counters.read(label, record)
                continue
            step.append(record)
            if not label.within:
                yield from _step_events(log, step, readers[label.process])
                step = []
    if step:  # an interrupted span has ended as well, but its record may not have fitted
        yield from _step_events(log, step, readers[log.labels[step[-1][0]].process])


def _step_events(
    log: TraceLog, step: list[Record], reader: tuple[int, Callable[[int], StepBytes]]
) -> Iterator[str]:
    """The outermost span first, which is the last in `step`, then what it holds."""
    outermost = log.labels[step[-1][0]]
    kv: dict[str, int] = {}
    if outermost.name == "decode":
        n_layers, step_bytes = reader
        position, n_rows = step[-1][4:]
        labels = Counter(record[0] for record in step)
        names = {log.labels[label].name for label in labels}
        weights = sum(record[5] for record in step if "bytes" in log.labels[record[0]].numbers)
        read = {"weights": weights}
        if n_rows == 1:
            device, host = step_bytes(position + 1)
            read |= {"KV, device": device, "KV, host": host}
            kv = {"attend": host // n_layers}
            scanned = "select" if "select" in names else "attend"
            kv[scanned] = kv.get(scanned, 0) + device // n_layers
        yield _counter("bytes read", outermost.process, step[-1][2] - log.began_ns, read)
    for record in (step[-1], *step[:-1]):
        label = log.labels[record[0]]
        arguments = dict(zip(label.numbers, record[4:], strict=False))
        if label.name in kv and label.layer >= 0:
            arguments["bytes"] = arguments.get("bytes", 0) + kv[label.name] // labels[record[0]]
        yield _slice(label, record, arguments, log.began_ns)


class _Counters:
    """Totals, and what follows from the reading before."""

    def __init__(self, began_ns: int) -> None:
        self._began_ns = began_ns
        self._before = (-1, 0, 0)

    def read(self, label: Label, record: Record) -> Iterator[str]:
        at_ns, moved, gross = record[2] - self._began_ns, *record[4:]
        process, moved_before, gross_before = self._before
        self._before = label.process, moved, gross
        yield _counter("bytes moved from the host", label.process, at_ns, {"total": moved})
        if process == label.process and gross > gross_before:
            hit_rate = 1 - (moved - moved_before) / (gross - gross_before)
            yield _counter("hit rate", label.process, at_ns, {"hit rate": round(hit_rate, 4)})


def _slice(label: Label, record: Record, arguments: dict[str, int], began_ns: int) -> str:
    _, track, begin_ns, end_ns, _, _ = record
    shown: dict[str, Any] = {} if label.layer < 0 else {"layer": label.layer}
    shown |= {name: n for name, n in arguments.items() if name != "bytes" or n}
    if "wait_ns" in shown:
        shown["wait_us"] = shown.pop("wait_ns") / 1000
    return (
        f'{{"ph":"X","pid":{label.process + 1},"tid":{track},"ts":{_us(begin_ns - began_ns)},'
        f'"dur":{_us(end_ns - begin_ns)},"name":"{label.name}","cat":"{label.within}","args":{_json(shown)}}}'
    )


def _counter(name: str, process: int, at_ns: int, values: dict[str, Any]) -> str:
    return f'{{"ph":"C","pid":{process + 1},"ts":{_us(at_ns)},"name":"{name}","args":{_json(values)}}}'


def _metadata(kind: str, process: int, track: int, **values: Any) -> str:
    return f'{{"ph":"M","pid":{process + 1},"tid":{track},"name":"{kind}","args":{_json(values)}}}'


def _us(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03}"


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))
