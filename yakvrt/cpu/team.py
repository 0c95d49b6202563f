"""A team of pinned threads that replays tapes."""

from __future__ import annotations

import ctypes
import os
import threading

import numpy as np

from ..kernels import team as protocol
from .kernel_cache import KernelCache, Progress
from .kernel_spec import kernel
from .tape import Tape
from .topology import allowed_cores

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_SPECS = [kernel("team", f"{name}_cpu") for name in ("publish", "lead", "follow")]


class Team:
    """`n_threads` threads, one of them the caller of run(); the others spin for a while between tapes, then
    sleep.

    Owns: its worker threads and control block; close() ends them. One caller at a time.
    """

    def __init__(self, n_threads: int, cache: KernelCache, progress: Progress | None = None) -> None:
        if not 1 <= n_threads <= 512:
            raise ValueError(f"{n_threads} threads asked for; -t takes 1 to 512")
        self.n_threads = n_threads
        self._cache = cache  # owns the code that the threads run
        addresses = cache.load(_SPECS, progress)
        self._publish, self._lead, self._follow = (_KERNEL(addresses[spec]) for spec in _SPECS)
        words = protocol.CONTROL_BYTES // 8 + 16 * n_threads
        self._control = np.zeros(words + 16, np.int64)
        self._control = self._control[-(self._control.ctypes.data // 8) % 16 :]
        self._job = np.array([self._control.ctypes.data, 0, 0], np.int64)
        self._job_address = self._job.ctypes.data
        cores = allowed_cores()
        # more threads than cores: the system places them
        self._cores = cores if len(cores) >= n_threads else []
        self._wake = [threading.Semaphore(0) for _ in range(n_threads)]
        self._caller = threading.Lock()
        self._workers = [
            threading.Thread(target=self._work, args=(t,), name=f"yakvrt-{t}", daemon=True)
            for t in range(1, n_threads)
        ]
        for worker in self._workers:
            worker.start()

    def run(self, tape: Tape) -> None:
        """Replays the tape; returns when every thread is done."""
        with self._caller:
            if not self._workers:
                self._announce(tape.address, tape.n_rows)
                self._lead(0, 1, 0, self._job_address)
                return
            previous = os.sched_getaffinity(0) if self._cores else None
            if previous is not None:
                os.sched_setaffinity(0, self._cores[:1])
            try:
                self._announce(tape.address, tape.n_rows)
                self._lead(0, self.n_threads, 0, self._job_address)
            finally:
                if previous is not None:
                    os.sched_setaffinity(0, previous)

    def close(self) -> None:
        with self._caller:
            if self._workers:
                self._control[protocol.QUIT // 8] = 1
                self._announce(0, 0)
                for worker in self._workers:
                    worker.join()
                self._workers = []

    def _announce(self, tape: int, n_rows: int) -> None:
        self._job[1:] = tape, n_rows
        self._publish(0, self.n_threads, 0, self._job_address)
        for t in range(1, self.n_threads):
            if self._control[protocol.WAKE // 8 + t]:
                self._wake[t].release()

    def _work(self, thread: int) -> None:
        if self._cores:
            os.sched_setaffinity(0, {self._cores[thread]})
        arguments = np.array([self._control.ctypes.data, 0], np.int64)
        while True:
            self._follow(thread, self.n_threads, 0, arguments.ctypes.data)
            if self._control[protocol.QUIT // 8]:
                return
            self._wake[thread].acquire()
