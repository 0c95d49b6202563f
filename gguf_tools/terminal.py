"""The verbs' side of the terminal: error lines, exit codes, Ctrl-C, and one line of progress."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final, Self

INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
TERMINATED: Final = 143
REFRESH: Final = 0.1  # seconds


class UsageError(Exception):
    """Flags that contradict each other or make no sense; the program ends with 2."""


def note(text: str) -> None:
    """Print one line on stderr."""
    print(f"gguf_tools: {text}", file=sys.stderr, flush=True)


def shown(text: str, keep: str = "") -> str:
    """Text from a file with everything escaped that could steer a terminal; `keep` stays as it is."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def readable_bytes(n_bytes: float) -> str:
    """A size for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} GiB"


def run(verb: Callable[[], int]) -> int:
    """Run a verb and turn whatever stops it into one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not end a listing.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        code = verb()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has seen enough; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("GGUF_TOOLS_DEBUG", "") not in ("", "0"):
            raise
        note(f"error: {_one_line(error)}")
        return 2 if isinstance(error, UsageError) else 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(*_: object) -> None:
    # An exception, unlike the signal's default, lets unfinished output files be removed.
    raise SystemExit(TERMINATED)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        message = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | UsageError) and message:
        return shown(message)
    if isinstance(error, MemoryError):
        return "out of memory; close other programs or take a smaller file"
    kind = type(error).__name__
    return f"internal error ({kind}: {shown(message)}); set GGUF_TOOLS_DEBUG=1 to see where it comes from"


class Progress:
    """A line on stderr with the share done, the rate and the time left; silent when stderr is no terminal."""

    __slots__ = ("_done", "_label", "_next", "_shows", "_started", "_total")

    def __init__(self, label: str, total_bytes: int) -> None:
        self._label = label
        self._total = total_bytes
        self._done = 0
        self._shows = sys.stderr.isatty()
        self._started = time.monotonic()
        # Short work shows nothing.
        self._next = self._started + 5 * REFRESH

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def say(self, text: str) -> None:
        """Prints a line on stdout, which may be the terminal that shows the progress."""
        if sys.stdout.isatty():
            self._clear()
        print(text)

    def _clear(self) -> None:
        if self._shows:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def add(self, n_bytes: int) -> None:
        """Counts bytes as done and shows the line, at most ten times a second."""
        self._done += n_bytes
        now = time.monotonic()
        if not self._shows or now < self._next:
            return
        self._next = now + REFRESH
        rate = self._done / (now - self._started)
        left = max(self._total - self._done, 0) / rate if rate else 0.0
        share = 100 * self._done / self._total if self._total else 100.0
        print(
            f"\r{self._label} {share:3.0f} %  {readable_bytes(rate)}/s  "
            f"{left // 60:.0f}:{left % 60:02.0f} left\x1b[K",
            end="",
            file=sys.stderr,
            flush=True,
        )
