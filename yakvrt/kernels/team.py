"""The loops that run a recorded step on a team of threads, without Python in between.

A tape is rows of (kernel address, argument address, barrier flag). Thread 0 leads; the others wait in
`follow`.
All synchronisation goes through words of `control`, each on its own cache line.
"""

from __future__ import annotations

from typing import Any

MAX_THREADS = 512

# Byte offsets into the control block: words that different threads write lie on different cache lines.
ARRIVED, PHASE, COUNTER, JOB, LED, TAPE, N_ROWS, QUIT, THREADS = (128 * i for i in range(9))


def wake_of(thread: int) -> int:
    """Where publish notes that a thread must be woken; the word before says that it sleeps."""
    return THREADS + 16 * thread + 8


def control_bytes(n_threads: int) -> int:
    return THREADS + 16 * n_threads


SPINS = 2000  # pauses before a waiting thread starts to yield its core
IDLE_YIELDS = 4000  # yields, some milliseconds, before an idle thread goes to sleep


def _make_run() -> Any:
    from ..cpu import vector_ops as v

    @v.inline
    def barrier(control: int, n_threads: int) -> None:
        if n_threads == 1:
            v.atomic_store(control + COUNTER, 0)
            return
        phase = v.atomic_load(control + PHASE)
        if v.atomic_add(control + ARRIVED, 1) == n_threads - 1:
            v.atomic_store(control + ARRIVED, 0)
            v.atomic_store(control + COUNTER, 0)  # every op starts with its work counter at 0
            v.atomic_store(control + PHASE, phase + 1)
        else:
            spins = 0
            while v.atomic_load(control + PHASE) == phase:
                spins += 1
                if spins < SPINS:
                    v.pause()
                else:
                    v.sched_yield()

    @v.inline
    def run(thread: int, n_threads: int, control: int) -> None:
        tape, n_rows = v.get_i64(control + TAPE), v.get_i64(control + N_ROWS)
        for i in range(n_rows):
            row = tape + i * 24
            v.call_kernel(v.get_i64(row), thread, n_threads, control + COUNTER, v.get_i64(row + 8))
            if v.get_i64(row + 16):
                barrier(control, n_threads)

    return run


def publish_cpu() -> Any:
    """Announces a job and notes which threads sleep and must be woken. Args: control, tape, n_rows."""
    from ..cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        control = v.get_i64(args)
        v.put_i64(control + TAPE, v.get_i64(args + 8))
        v.put_i64(control + N_ROWS, v.get_i64(args + 16))
        v.atomic_add(control + JOB, 1)
        for t in range(1, n_threads):
            parked = control + THREADS + 16 * t
            v.put_i64(parked + 8, v.atomic_swap(parked, 0))

    return kernel


def lead_cpu() -> Any:
    """Runs the published tape as thread 0; returns when all threads are done. Args: control."""
    from ..cpu import vector_ops as v

    run = _make_run()

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        control = v.get_i64(args)
        run(0, n_threads, control)
        v.atomic_store(control + LED, v.atomic_load(control + JOB))

    return kernel


def follow_cpu() -> Any:
    """Runs jobs until there was none for a while. Args: control, job (the last one this thread ran; updated).

    Returns with the thread marked as parked, or with a wake-up already promised to it: either way the caller
    must wait to be woken, unless QUIT is set.
    """
    from ..cpu import vector_ops as v

    run = _make_run()

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        control = v.get_i64(args)
        parked = control + THREADS + 16 * thread
        idle = 0
        while True:
            if v.atomic_load(control + JOB) != v.get_i64(args + 8):
                v.put_i64(args + 8, v.get_i64(args + 8) + 1)
                if v.atomic_load(control + QUIT):
                    return
                run(thread, n_threads, control)
                idle = 0
                continue
            idle += 1
            if idle < SPINS:
                v.pause()
            elif idle < SPINS + IDLE_YIELDS:
                v.sched_yield()
            else:
                v.atomic_swap(parked, 1)
                # a job published meanwhile either saw the mark, and wakes us, or did not, and we take the
                # mark back
                if v.atomic_load(control + JOB) != v.get_i64(args + 8) and v.atomic_swap(parked, 0):
                    idle = 0
                    continue
                return

    return kernel
