"""Servers as processes: ours, and llama.cpp's as llama-cpp-python packs it, on the same file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx


@contextmanager
def serving(command: Sequence[str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts it, waits until it answers, and ends it by SIGTERM.

    Raises: RuntimeError, with the end of its log, when it ends before it answers.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} does not answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ours(model: str, port: int, n_slots: int, ctx_size: int, threads: int, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "yakvrt", "serve", "--model", model, "--port", str(port)),
        *("--parallel", str(n_slots), "-c", str(ctx_size), "--threads", str(threads), *more),
    ]


def llama_cpp(model: str, port: int, ctx_size: int, threads: int) -> list[str]:
    return [
        *(sys.executable, "-m", "llama_cpp.server", "--model", model, "--port", str(port)),
        *("--n_ctx", str(ctx_size), "--n_threads", str(threads), "--n_threads_batch", str(threads)),
        *("--interrupt_requests", "false"),  # or the next request would end the one under way
    ]


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
