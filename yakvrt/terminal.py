"""The verbs' side of the terminal: error lines, exit codes, Ctrl-C, progress bars and the footer."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from rich.progress import Progress

INTERRUPTED = 130
BROKEN_PIPE = 141
PATIENCE = 1.0  # seconds
MAX_MESSAGE = 1000  # characters
FULL = {
    errno.ENOSPC: "free some space or write to another disk",
    errno.EDQUOT: "free some space or write to another disk",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or write less",
}


class UsageError(Exception):
    """Flags that contradict each other or make no sense; the program ends with 2."""


def note(text: str) -> None:
    """Print one line on stderr; a stderr that takes nothing more does not stop the verb."""
    with suppress(OSError):
        print(f"yakvrt: {text}", file=sys.stderr, flush=True)


def counted(n: int, thing: str) -> str:
    """A number and its noun: 1 token, 2 tokens."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def one_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        message += f"; {FULL[error.errno]}" if error.errno in FULL else ""
    else:
        message = " ".join(str(error).split())
    if len(message) > MAX_MESSAGE:  # hostile files have names and values of any length
        message = f"{message[: MAX_MESSAGE // 2]} ... {message[-MAX_MESSAGE // 2 :]}"
    if isinstance(error, ValueError | RuntimeError | OSError | UsageError) and message:
        return message
    if isinstance(error, MemoryError):
        why = f" ({message})" if message else ""
        return f"out of memory{why}; lower --ctx-size or take a smaller model"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"the package {error.name.partition('.')[0]} is missing here; activate the environment that"
            " yakvrt was installed in (. .venv/bin/activate), or install it: pip install ."
        )
    kind = type(error).__name__
    return f"internal error ({kind}: {message}); set YAKVRT_DEBUG=1 to see where it comes from"


def run(verb: Callable[[], int]) -> int:
    """Run a verb and turn whatever stops it into one line on stderr and an exit code."""
    signals: list[int] = []
    try:
        _open_streams()
        with _interruptible(signals):
            try:
                code = verb()
            except SystemExit:  # of --help
                sys.stdout.flush()
                raise
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        _discard_stdout()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    except Exception as error:
        if signals and isinstance(error, ImportError | SystemError):
            note("interrupted")  # what imports written in C make of a KeyboardInterrupt
            return INTERRUPTED
        # Whoever else writes a file names it.
        if isinstance(error, OSError) and error.errno in FULL and not error.filename:
            error.filename = _stdout_name()
            _discard_stdout()
        if os.environ.get("YAKVRT_DEBUG", "") not in ("", "0"):
            raise
        note(f"error: {one_line(error)}")
        return 2 if isinstance(error, UsageError) else 1


def _open_streams() -> None:
    """Make stdout and stderr fit to print on.

    Raises: ValueError when stdout is closed.
    """
    closed = [stream is None for stream in (sys.stdin, sys.stdout, sys.stderr)]
    if any(closed):
        # The next files opened would get the numbers of the closed streams, and what libraries print.
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
    if closed[2]:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (stays for the process)
    if closed[1]:
        raise ValueError("stdout is closed, and the answer is printed there; redirect it to a file")
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not end an answer.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


@contextmanager
def _interruptible(signals: list[int]) -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt here and is noted; before and after it ends the process.

    Where yakvrt/__init__ has set that up: a program that calls a verb keeps its own handler.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        signal.default_int_handler(number, frame)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stdout_name() -> str:
    """What stdout is redirected to, where the system tells."""
    try:
        return f"stdout ({os.readlink(f'/proc/self/fd/{sys.stdout.fileno()}')})"
    except OSError:
        return "stdout"


def _discard_stdout() -> None:
    """Send what is still buffered nowhere, so that it cannot fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_line(text: str) -> None:
    """Finish the answer's last line on stdout."""
    if text and not text.endswith("\n"):
        print()
    sys.stdout.flush()


def peak_memory_bytes() -> int:
    """The most resident memory this process ever held."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def footer(timings: Mapping[str, float], kv: Mapping[str, float | str]) -> None:
    """Print speeds and memory of an answer on stderr, dimmed on a terminal, and what its KV method cost."""
    cached = f" ({timings['cache_n']:.0f} more from the cache)" if timings["cache_n"] else ""
    read, written = (counted(int(timings[name]), "token") for name in ("prompt_n", "predicted_n"))
    parts = (
        f"prompt: {read}, {timings['prompt_per_second']:.1f} tokens/s{cached}",
        f"generation: {written}, {timings['predicted_per_second']:.1f} tokens/s",
        f"first token: {timings['ttft_ms'] / 1e3:.2f} s",
        f"peak memory: {peak_memory_bytes() / 1e9:.2f} GB",
    )
    lines = [" | ".join(parts)]
    if steps := float(kv.get("steps", 0)):
        moved, gross = (float(kv[name]) / steps / 1e6 for name in ("moved_bytes", "gross_bytes"))
        lines.append(
            f"kv {kv['method']}: {kv['device_bytes_per_token']:.0f} device and "
            f"{kv['host_bytes_per_token']:.0f} host bytes per token held | "
            f"per token {gross:.2f} MB gross, {moved:.2f} MB moved, hit rate {float(kv['hit_rate']):.0%}"
        )
    with suppress(OSError):
        for line in lines:
            print(f"\033[2m{line}\033[0m" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


class Bar:
    """A progress bar on stderr, shown only on a terminal and once the work has taken a second.

    Call it with what is done and what is to do; it disappears when all is done or on close().
    """

    __slots__ = ("_bar", "_said", "_started", "title")

    def __init__(self, title: str) -> None:
        self.title = title
        self._started = time.monotonic()
        self._bar: Progress | None = None
        self._said = False

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            if done >= total or time.monotonic() - self._started < PATIENCE or not sys.stderr.isatty():
                return
            self._bar = self._start(total)
        self._bar.update(self._bar.task_ids[0], description=self.title, completed=done, total=total)
        if done >= total:
            self.close()

    def loading(self, what: str, done: int, total: int) -> None:
        """Show a step of loading; compiling takes long enough to be said without a terminal too."""
        self.title = what.partition(":")[0]
        if what.startswith("compiling") and not self._said and not sys.stderr.isatty():
            note(self.title)
            self._said = True
        self(done, total)

    def _start(self, total: int) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        bar.add_task(self.title, total=total)
        bar.start()
        return bar

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
