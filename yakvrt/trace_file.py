"""--trace FILE: what a verb does becomes a file (trace_events.py) for ui.perfetto.dev."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from yakvrt import terminal
from yakvrt.trace_events import Reader, events

if TYPE_CHECKING:
    from yakvrt.engine import Engine
    from yakvrt.trace_log import Trace, TraceLog


def add_trace_argument(parser: argparse.ArgumentParser) -> None:
    """--trace."""
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="write when each thread ran which part of which layer, for Perfetto",
    )


class Tracing:
    """The trace of --trace FILE, or none; the file gets its name at the end, also when interrupted: Ctrl-C
    while it is written ends it earlier. most_bytes: only the newest is kept, in so much memory.

    Raises: ValueError or OSError, naming the file, when it cannot be written; while nothing has been done.
    """

    def __init__(self, path: str | None, most_bytes: int | None = None) -> None:
        from yakvrt.trace_log import NO_TRACE, TraceLog

        self.log: Trace = NO_TRACE
        self._path = path
        self._readers: list[Reader] = []
        if path is None:
            return
        from gguf_tools.output_path import output_path

        self._target = output_path(path)
        if self._target.exists() and not self._target.is_file():
            raise ValueError(f"{path} is no regular file, a trace cannot be written there; name another file")
        self.log = TraceLog(self._target.parent, path, most_bytes)

    @contextmanager
    def follow(self, engine: Engine, name: str) -> Iterator[None]:
        """Notes what an engine does meanwhile."""
        if self._path is None:
            yield
            return
        self.begin(engine, name)
        log: Any = self.log
        try:
            yield
        finally:
            engine.trace(None)
            log.read_counters()

    def begin(self, engine: Engine, name: str) -> None:
        """Notes from now on what an engine does, until it is closed."""
        if self._path is not None:
            log: Any = self.log
            log.begin_process(name)
            self._readers.append((engine.config.n_layers, engine.step_bytes))
            engine.trace(log)

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
