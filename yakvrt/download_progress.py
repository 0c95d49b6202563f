"""Progress of a download on stderr: a bar on a terminal, one line otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def note(text: str) -> None:
    """Prints one line on stderr."""
    print(f"yakvrt: {text}", file=sys.stderr, flush=True)


def size_text(size: int) -> str:
    """Writes a number of bytes for people, with decimal units."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@contextmanager
def byte_progress(text: str, total: int, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes the bytes done so far.

    Units: bytes.
    """
    if not enabled or not sys.stderr.isatty():
        if enabled:
            note(f"{text} ({size_text(total)})")
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.update(task, completed=done)
