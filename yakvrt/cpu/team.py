"""A team of threads that replays tapes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref

import numpy as np

from ..kernels import team as protocol
from .kernel_cache import KernelCache, Progress
from .kernel_spec import kernel
from .tape import Tape
from .topology import allowed_cores

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_SPECS = [kernel("team", f"{name}_cpu") for name in ("publish", "lead", "follow")]


class _Crew:
    """What the worker threads share; it outlives its Team, so that a dropped Team can end them."""

    def __init__(self, n_threads: int, cache: KernelCache, progress: Progress | None) -> None:
        self.n_threads = n_threads
        self._cache = cache  # owns the code that the threads run
        addresses = cache.load(_SPECS, progress)
        self.publish, self.lead, self.follow = (_KERNEL(addresses[spec]) for spec in _SPECS)
        words = protocol.control_bytes(n_threads) // 8
        memory = np.zeros(words + 16, np.int64)
        self.control = memory[-(memory.ctypes.data // 8) % 16 :]
        self.job = np.array([self.control.ctypes.data, 0, 0], np.int64)
        self.wake = [threading.Semaphore(0) for _ in range(n_threads)]
        # Pinned where the team has every core: unpinned threads that were woken often share one. A smaller
        # team is left to the system, or two of them would sit on the same cores.
        cores = allowed_cores()
        self.cores = cores if len(cores) == n_threads else []
        self.threads = [
            threading.Thread(target=self._work, args=(t,), name=f"yakvrt-{t}", daemon=True)
            for t in range(1, n_threads)
        ]
        for thread in self.threads:
            thread.start()

    def announce(self, tape: int, n_rows: int) -> None:
        self.job[1:] = tape, n_rows
        self.publish(0, self.n_threads, 0, self.job.ctypes.data)

    def complete(self) -> None:
        """Wakes who sleeps and leads the announced job to its end."""
        for t in range(1, self.n_threads):
            if self.control[protocol.wake_of(t) // 8]:
                self.wake[t].release()
        self.lead(0, self.n_threads, 0, self.job.ctypes.data)

    def finish_interrupted(self) -> None:
        """Ends a job whose leader was interrupted (Ctrl-C) between announcing and leading it."""
        if self.control[protocol.JOB // 8] != self.control[protocol.LED // 8]:
            self.complete()

    def quit(self) -> None:
        self.finish_interrupted()
        self.control[protocol.QUIT // 8] = 1
        self.announce(0, 0)
        for t in range(1, self.n_threads):
            self.wake[t].release()
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join()

    def pin(self, thread: int) -> None:
        if self.cores:
            with contextlib.suppress(OSError):  # a sandbox may forbid it; it only makes things faster
                os.sched_setaffinity(0, {self.cores[thread]})

    def _work(self, thread: int) -> None:
        self.pin(thread)
        arguments = np.array([self.control.ctypes.data, 0], np.int64)
        while True:
            self.follow(thread, self.n_threads, 0, arguments.ctypes.data)
            if self.control[protocol.QUIT // 8]:
                return
            self.wake[thread].acquire()


class Team:
    """`n_threads` threads: the caller of run(), and others that spin for a while between tapes, then sleep.

    Owns: its worker threads and control block; close(), or dropping it, ends them. Callers take turns.
    Raises: ValueError for a number of threads out of range, RuntimeError once closed or in a forked process.
    """

    def __init__(self, n_threads: int, cache: KernelCache, progress: Progress | None = None) -> None:
        if not 1 <= n_threads <= protocol.MAX_THREADS:
            raise ValueError(f"{n_threads} threads asked for; -t takes 1 to {protocol.MAX_THREADS}")
        self.n_threads = n_threads
        self._crew = _Crew(n_threads, cache, progress)
        self._process = os.getpid()
        self._tape: Tape | None = None  # kept while threads may still read it
        self._caller = threading.Lock()
        self._callers_mask = threading.local()
        self._close = weakref.finalize(self, self._crew.quit)

    def run(self, tape: Tape) -> None:
        """Replays the tape; returns when every thread is done."""
        if os.getpid() != self._process:
            raise RuntimeError("the threads of a model do not survive a fork; load the model after forking")
        with self._caller:
            if not self._close.alive:
                raise RuntimeError("the model is closed; load it again")
            self._crew.finish_interrupted()
            self._tape = tape
            mask = self._mask()
            try:
                if mask:
                    self._crew.pin(0)
                self._crew.announce(tape.address, tape.n_rows)
                self._crew.complete()
            finally:
                if mask:
                    with contextlib.suppress(OSError):
                        os.sched_setaffinity(0, mask)

    def close(self) -> None:
        """Ends the threads; further calls do nothing."""
        with self._caller:
            if os.getpid() == self._process:
                self._close()

    def _mask(self) -> set[int] | None:
        """The calling thread's affinity, read once: later it might be what an interrupted run left."""
        if self._crew.cores and not hasattr(self._callers_mask, "cores"):
            self._callers_mask.cores = os.sched_getaffinity(0)
        return getattr(self._callers_mask, "cores", None)
