"""A team of threads that replays tapes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Set

import numpy as np

from ..kernel_build.compilers import Progress
from ..kernel_build.spec import kernel
from ..kernels import team as protocol
from ..trace_log import TraceLog
from .affinity import Affinity, Places, place_threads
from .attendance import Attendance
from .kernel_cache import KernelCache
from .tape import Tape
from .topology import current_cpu, machine_topology

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_SPECS = [kernel("team", f"{name}_cpu") for name in ("publish", "lead", "follow")]


def check_threads(n_threads: int) -> None:
    """Raises: ValueError for a number of threads out of range."""
    if not 1 <= n_threads <= protocol.MAX_THREADS:
        raise ValueError(f"{n_threads} threads asked for; -t takes 1 to {protocol.MAX_THREADS}")


def _bind(cpus: Set[int]) -> None:
    """Binds the calling thread to these CPUs; to none means that it stays free."""
    if cpus:
        with contextlib.suppress(OSError):  # a sandbox may forbid it; it only makes things faster
            os.sched_setaffinity(0, cpus)


class _Crew:
    """What the worker threads share; it outlives its Team, so that a dropped Team can end them."""

    def __init__(self, places: Places, cache: KernelCache, progress: Progress | None) -> None:
        self.n_threads = n_threads = len(places)
        self.places = places
        self._cache = cache  # owns the code that the threads run
        addresses = cache.load(_SPECS, progress)
        self.publish, self.lead, self.follow = (_KERNEL(addresses[spec]) for spec in _SPECS)
        words = protocol.control_bytes(n_threads) // 8
        memory = np.zeros(words + 16, np.int64)
        self.control = memory[-(memory.ctypes.data // 8) % 16 :][:words]
        self.words = self.control.data  # read and written in a fraction of the time
        of_thread = self.control[protocol.THREADS // 8 :].reshape(n_threads, -1)
        self.wall_ns, self.own_ns = of_thread[:, protocol.WALL_NS // 8], of_thread[:, protocol.OWN_NS // 8]
        self.wake_words = of_thread[:, protocol.WAKE // 8]
        self.everyone = np.arange(n_threads)
        job = np.zeros(4 + n_threads, np.int64)
        job[0] = self.control.ctypes.data
        self.job, self.job_address = job.data, job.ctypes.data
        self.wake = [threading.Semaphore(0) for _ in range(n_threads)]
        self.threads = [
            threading.Thread(target=self._work, args=(t,), name=f"yakvrt-{t}", daemon=True)
            for t in range(1, n_threads)
        ]
        for thread in self.threads:
            thread.start()

    def trace(self, tape: Tape, address: int) -> None:
        """The next job, of this tape, writes down times there."""
        words, first = self.words, protocol.TRACE // 8
        words[first], words[first + 1] = tape.bounds_words
        words[first + 2], words[first + 3] = address, 8 * tape.time_words

    def trace_none(self) -> None:
        self.words[protocol.TRACE // 8] = 0

    def announce(self, tape: tuple[int, int], active: np.ndarray) -> None:
        """Gives out a job to some threads; the caller takes the place of the first."""
        self.job[1], self.job[2] = tape
        self.job[3] = n_active = len(active)
        self.job[4 : 4 + n_active] = active.data
        self.publish(0, self.n_threads, 0, self.job_address)

    def complete(self) -> None:
        """Wakes who sleeps and leads the announced job to its end."""
        if self.words[protocol.ASLEEP // 8]:
            for t in np.flatnonzero(self.wake_words):
                self.wake[t].release()
        self.lead(0, self.n_threads, 0, self.job_address)

    def finish_interrupted(self) -> None:
        """Ends a job whose leader was interrupted (Ctrl-C) between announcing and leading it."""
        if self.words[protocol.JOB // 8] != self.words[protocol.LED // 8]:
            self.complete()

    def quit(self) -> None:
        self.finish_interrupted()
        self.words[protocol.QUIT // 8] = 1
        self.announce((0, 0), self.everyone)
        for t in range(1, self.n_threads):
            self.wake[t].release()
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join()

    def leaders_cpus(self, threads: np.ndarray) -> Set[int]:
        """Those of a job's first thread, or all when it is alone; none where it may run anywhere."""
        return frozenset().union(*self.places) if len(threads) == 1 else self.places[threads[0]]

    def _work(self, thread: int) -> None:
        _bind(self.places[thread])
        arguments = np.array([self.control.ctypes.data, 0], np.int64)
        while True:
            self.follow(thread, self.n_threads, 0, arguments.ctypes.data)
            if self.words[protocol.QUIT // 8]:
                return
            self.wake[thread].acquire()


def _end(crew: _Crew, caller: threading.Lock, process: int) -> None:
    """When the last tape is done: at the end of the process another thread may still be in run()."""
    if os.getpid() == process:
        with caller:
            crew.quit()


class Team:
    """Threads: the caller of run(), and others that spin for a while between tapes, then sleep.

    `places` are the CPUs of each; without them they are placed on the whole machine.
    Owns: its worker threads and control block; close(), or dropping it, ends them. Callers take turns.
    Raises: ValueError for a number of threads out of range, RuntimeError once closed or in a forked process.
    """

    def __init__(
        self,
        n_threads: int,
        cache: KernelCache,
        progress: Progress | None = None,
        places: Places | None = None,
    ) -> None:
        check_threads(n_threads)
        self.n_threads = n_threads
        if places is None:
            places = place_threads(Affinity(), machine_topology(), n_threads)
        self._crew = _Crew(places, cache, progress)
        # threads that the system may move are moved by it away from busy cores
        own_cores = len(set().union(*places)) == n_threads == sum(map(len, places))
        self._attendance = Attendance(n_threads) if own_cores and n_threads > 1 else None
        self._process = os.getpid()
        self._tape: Tape | None = None  # kept while threads may still read it
        self.log: TraceLog | None = None
        self._caller = threading.Lock()
        self._close = weakref.finalize(self, _end, self._crew, self._caller, self._process)
        self._caller_was = threading.local()  # `mask`: its affinity before it was bound

    def run(self, tape: Tape, threads: np.ndarray | None = None) -> None:
        """Replays the tape on some threads, or on all; returns when they are done."""
        if os.getpid() != self._process:
            raise RuntimeError("the threads of a model do not survive a fork; load the model after forking")
        with self._caller:
            if not self._close.alive:
                raise RuntimeError("the model is closed; load it again")
            crew = self._crew
            crew.finish_interrupted()
            self._tape = tape
            threads = self.everyone if threads is None else threads
            n_words = self._trace(self.log, tape, len(threads)) if self.log else 0
            cpus = crew.leaders_cpus(threads)
            mask = self._mask(cpus)
            try:
                if mask:
                    _bind(cpus)
                crew.announce(tape.words, threads)
                crew.complete()
            finally:
                if mask:
                    _bind(mask)
                    del self._caller_was.mask
            if n_words and self.log:
                self.log.ran(tape.stages, threads, n_words)

    def trace(self, log: TraceLog | None) -> None:
        """Notes from now on what threads do; None ends that."""
        with self._caller:
            crew = self._crew
            crew.finish_interrupted()
            self.log = log
            crew.trace_none()
            if log:
                for thread in range(self.n_threads):
                    log.name_track(thread, f"thread {thread}" if thread else "thread 0 (host)")

    @property
    def everyone(self) -> np.ndarray:
        """All threads, as run() takes them: by their places, of which the caller gets the first."""
        return self._crew.everyone

    def attending(self) -> np.ndarray:
        """The threads for a step whose work is shared out evenly: those whose cores nothing else uses."""
        crew = self._crew
        if self._attendance is None:
            return crew.everyone
        now_ns = time.perf_counter_ns()
        if self._attendance.is_due(int(crew.wall_ns[0]), now_ns):
            self._attendance.update(crew.wall_ns, crew.own_ns, now_ns)
        return self._attendance.active

    def close(self) -> None:
        """Ends the threads; further calls do nothing."""
        self._close()

    def _trace(self, log: TraceLog, tape: Tape, n_active: int) -> int:
        """How many words of the log the next job will take."""
        if not log.shows_stages:
            self._crew.trace_none()
            return 0
        n_words = n_active * tape.time_words
        self._crew.trace(tape, log.room(n_words))
        return n_words

    def _mask(self, cpus: Set[int]) -> set[int] | None:
        """The affinity of a calling thread that must be bound to these CPUs. One that is there already need
        not: that would take as long as some layers' norms, it seldom moves, and the next job sees if it did.
        """
        was = self._caller_was
        if not hasattr(was, "mask"):  # else an interruption left the thread bound
            if not cpus or current_cpu() in cpus:
                return None
            was.mask = os.sched_getaffinity(0)
        mask: set[int] = was.mask
        return mask
