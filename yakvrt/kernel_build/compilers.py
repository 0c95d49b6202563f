"""Compiles kernels in helper processes, so that the process that runs a model never imports a compiler.

A helper reads one JSON request a line on stdin and answers one JSON line each on stdout; an answer with
"error" stops the rest.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any

# done, total, symbol of the kernel just compiled; called from the threads that drive the compilers
Progress = Callable[[int, int, str], None]

MAX_COMPILERS = 8  # processes of 200 MB at first, of 550 after all CUDA kernels
KEPT_ANSWERS = 32  # of a helper, until another takes its place: it keeps memory for everything it compiled


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

    def drive(worker: _Helper) -> None:
        while not failures:
            try:
                request = queue.pop()
            except IndexError:
                return
            answer = worker.ask(request)
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
        for worker in workers:
            if not (ready_for_more and worker.n_answers < KEPT_ANSWERS and _keep(helper, worker)):
                worker.end()
    if failures:
        raise RuntimeError(failures[0])


class _Helper:
    """One process."""

    def __init__(self, module: str) -> None:
        self.n_answers = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            start_new_session=True,  # Ctrl-C is for us; we end it
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.n_answers += 1
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            answer = {"error": "the compiler process died; is there enough memory?"}
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


_lock = Lock()
_keepers = 0  # of kept_helpers(), in all threads
_idle: dict[str, list[_Helper]] = {}


@contextmanager
def kept_helpers() -> Iterator[None]:
    """Within, helpers wait for the next call instead of ending, until nobody is within any more: for kernels
    that are asked for one after another, since a helper's start takes as long as a kernel.
    """
    global _keepers
    with _lock:
        _keepers += 1
    try:
        yield
    finally:
        with _lock:
            _keepers -= 1
            ended = [] if _keepers else [worker for idle in _idle.values() for worker in idle]
            if not _keepers:
                _idle.clear()
        for worker in ended:
            worker.end()


def _keep(module: str, worker: _Helper) -> bool:
    """Whether it now waits for the next call."""
    with _lock:
        if _keepers:
            _idle.setdefault(module, []).append(worker)
        return _keepers > 0


def _take(module: str) -> _Helper:
    while True:
        with _lock:
            worker = _idle[module].pop() if _idle.get(module) else None
        if worker is None:
            return _Helper(module)
        if worker.process.poll() is None:
            return worker
        worker.end()


def answer_requests(compile_one: Callable[[dict[str, Any]], None]) -> None:
    """The helper's side: compiles what stdin asks for until it ends."""
    gc.freeze()  # a compiler makes millions of objects that live as long as a kernel takes
    gc.set_threshold(100_000)
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
        try:
            print(json.dumps(answer), flush=True)
        except BrokenPipeError:  # whoever asked has ended
            os._exit(0)
