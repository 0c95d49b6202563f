"""Compiles kernels in helper processes, so that the process that runs a model never imports a compiler.

A helper reads one JSON request a line on stdin and answers one JSON line each on stdout; an answer with
"error" stops the rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any

# done, total, symbol of the kernel just compiled; called from the threads that drive the compilers
Progress = Callable[[int, int, str], None]

MAX_COMPILERS = 8  # processes of about 200 MB each


def compile_in_helpers(
    helper: str,
    requests: Sequence[Mapping[str, Any]],
    n_processes: int,
    progress: Progress | None = None,
) -> None:
    """Has `python -m helper` answer every request, the last ones first; each has at least a "symbol".

    Raises: RuntimeError when a kernel does not compile.
    """
    queue = list(requests)
    done: list[str] = []
    failures: list[str] = []

    def drive(worker: subprocess.Popen[str]) -> None:
        assert worker.stdin is not None
        assert worker.stdout is not None
        while not failures:
            try:
                request = queue.pop()
            except IndexError:
                return
            try:
                worker.stdin.write(json.dumps(request) + "\n")
                worker.stdin.flush()
                answer = json.loads(worker.stdout.readline())
            except (OSError, ValueError):
                answer = {"error": "the compiler process died; is there enough memory?"}
            if "error" in answer:
                failures.append(f"kernel {request['symbol']} cannot be compiled: {answer['error']}")
                return
            done.append(request["symbol"])
            if progress:
                progress(len(done), len(requests), request["symbol"])

    workers = [_take(helper) for _ in range(min(len(requests), n_processes, MAX_COMPILERS))]
    threads = [Thread(target=drive, args=(worker,)) for worker in workers]
    ready_for_more = False
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ready_for_more = not failures
    finally:  # also when interrupted
        queue.clear()
        if ready_for_more and _kept is not None:
            _kept.setdefault(helper, []).extend(workers)
        else:
            _end(workers)
    if failures:
        raise RuntimeError(failures[0])


# idle helpers; None where they end with the call that started them
_kept: dict[str, list[subprocess.Popen[str]]] | None = None


@contextmanager
def kept_helpers() -> Iterator[None]:
    """Within, helpers wait for the next call instead of ending: for kernels that are asked for one by one,
    since a helper's start takes as long as a kernel.
    """
    global _kept
    own: dict[str, list[subprocess.Popen[str]]] = {}
    outer, _kept = _kept, own
    try:
        yield
    finally:
        _kept = outer
        for workers in own.values():
            _end(workers)


def answer_requests(compile_one: Callable[[dict[str, Any]], None]) -> None:
    """The helper's side: compiles what stdin asks for until it ends."""
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"symbol": request["symbol"]}
        try:
            compile_one(request)
        except OSError as error:
            remedy = "set YAKVRT_CACHE to a writable directory with free space"
            answer["error"] = f"cannot write {request['path']} ({error}): {remedy}"
        except Exception as error:  # the parent reports it and stops
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


def _take(helper: str) -> subprocess.Popen[str]:
    while _kept and (idle := _kept.get(helper)):
        worker = idle.pop()
        if worker.poll() is None:
            return worker
        _end([worker])
    return _start(helper)


def _end(workers: Iterable[subprocess.Popen[str]]) -> None:
    for worker in workers:
        worker.kill()
        worker.communicate()


def _start(helper: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", helper],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        start_new_session=True,  # Ctrl-C is for us; we end it
    )
