"""The loops that run a recorded step on a team of threads, without Python in between.

A tape is rows of (kernel address, argument address, barrier flag). Thread 0 leads; the others wait in
`follow` for a job that names them: not every thread takes part in every job (cpu/attendance.py says why).
All synchronisation goes through words of `control`, each on its own cache line.
"""

from __future__ import annotations

from typing import Any

MAX_THREADS = 512

# Byte offsets into the control block: words that different threads write lie on different cache lines.
ARRIVED, PHASE, COUNTER, JOB, LED, TAPE, N_ROWS, QUIT, N_ACTIVE, TRACE, THREADS = (128 * i for i in range(11))

# Words of a traced job, 0 otherwise. BOUNDS: the address of the first rows of its stages, and behind them its
# number of rows. TIMES: the address of the first thread's times, TIMES_BYTES before those of the next.
# A thread's times are pairs of words: the clock and the counter of ticks when it began; for each stage the
# ticks when it was done and those that it waited; the clock and the ticks at the end.
BOUNDS, N_STAGES, TIMES, TIMES_BYTES = (8 * i for i in range(4))
PAIR = 2

# Words of one thread. TICKET: the last job that named it * 1024 + its place in that job. PARKED: it sleeps.
# WAKE: publish found it asleep. WALL_NS, OWN_NS: time spent in jobs by the clock on the wall, and by the
# thread's own, which stands still while something else has the core. TIME: two words for the system's answer.
TICKET, PARKED, WAKE, WALL_NS, OWN_NS, TIME = (8 * i for i in range(6))
THREAD_BYTES = 128
PLACES = 1024

SPINS = 2000  # pauses before a waiting thread starts to yield its core
IDLE_YIELDS = 4000  # yields, some milliseconds, before an idle thread goes to sleep


def control_bytes(n_threads: int) -> int:
    return THREADS + THREAD_BYTES * n_threads


def _make_run() -> Any:
    from ..cpu import clock
    from ..cpu import vector_ops as v

    nanoseconds, ticks, wall, own = clock.nanoseconds, clock.ticks, clock.WALL, clock.OWN

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
    def replay(control: int, place: int, n_threads: int) -> None:
        tape, n_rows = v.get_i64(control + TAPE), v.get_i64(control + N_ROWS)
        for i in range(n_rows):
            row = tape + i * 24
            v.call_kernel(v.get_i64(row), place, n_threads, control + COUNTER, v.get_i64(row + 8))
            if v.get_i64(row + 16) and i < n_rows - 1:
                barrier(control, n_threads)

    @v.inline
    def replay_traced(control: int, place: int, n_threads: int, answer: int) -> None:
        """The same, with ticks read between stages and around barriers."""
        tape, n_rows = v.get_i64(control + TAPE), v.get_i64(control + N_ROWS)
        bounds, n_stages = v.get_i64(control + TRACE + BOUNDS), v.get_i64(control + TRACE + N_STAGES)
        out = v.get_i64(control + TRACE + TIMES) + place * v.get_i64(control + TRACE + TIMES_BYTES)
        v.put_i64(out, nanoseconds(wall, answer))
        now = ticks(answer)
        v.put_i64(out + 8, now)
        for stage in range(n_stages):
            out += 8 * PAIR
            waited, read = 0, False
            for i in range(v.get_i64(bounds + 8 * stage), v.get_i64(bounds + 8 * stage + 8)):
                row = tape + i * 24
                v.call_kernel(v.get_i64(row), place, n_threads, control + COUNTER, v.get_i64(row + 8))
                read = v.get_i64(row + 16) and i < n_rows - 1
                if read:
                    arrived = ticks(answer)
                    barrier(control, n_threads)
                    now = ticks(answer)
                    waited += now - arrived
            if not read:
                now = ticks(answer)
            v.put_i64(out, now)
            v.put_i64(out + 8, waited)
        v.put_i64(out + 16, nanoseconds(wall, answer))
        v.put_i64(out + 24, ticks(answer))

    @v.inline
    def run(thread: int, place: int, control: int) -> None:
        """Thread `thread`'s part of the job, as number `place` of those that take part."""
        words = control + THREADS + THREAD_BYTES * thread
        began_wall, began_own = nanoseconds(wall, words + TIME), nanoseconds(own, words + TIME)
        n_threads = v.get_i64(control + N_ACTIVE)
        if v.get_i64(control + TRACE + BOUNDS):
            replay_traced(control, place, n_threads, words + TIME)
        else:
            replay(control, place, n_threads)
        # before the last barrier, after which another job may be on its way
        v.put_i64(words + WALL_NS, v.get_i64(words + WALL_NS) + nanoseconds(wall, words + TIME) - began_wall)
        v.put_i64(words + OWN_NS, v.get_i64(words + OWN_NS) + nanoseconds(own, words + TIME) - began_own)
        barrier(control, n_threads)

    return run


def publish_cpu() -> Any:
    """Announces a job and notes which of its threads sleep and must be woken.

    Args: control, tape, n_rows, n_active, the threads that take part (thread 0 first; n_active words).
    """
    from ..cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        control, n_active = v.get_i64(args), v.get_i64(args + 24)
        v.put_i64(control + TAPE, v.get_i64(args + 8))
        v.put_i64(control + N_ROWS, v.get_i64(args + 16))
        v.put_i64(control + N_ACTIVE, n_active)
        for t in range(1, n_threads):
            v.put_i64(control + THREADS + THREAD_BYTES * t + WAKE, 0)
        job = v.atomic_add(control + JOB, 1) + 1
        for place in range(1, n_active):
            words = control + THREADS + THREAD_BYTES * v.get_i64(args + 32 + 8 * place)
            v.atomic_store(words + TICKET, job * PLACES + place)
            v.put_i64(words + WAKE, v.atomic_swap(words + PARKED, 0))

    return kernel


def lead_cpu() -> Any:
    """Runs the published tape as thread 0; returns when all threads are done. Args: control."""
    from ..cpu import vector_ops as v

    run = _make_run()

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        control = v.get_i64(args)
        run(0, 0, control)
        v.atomic_store(control + LED, v.atomic_load(control + JOB))

    return kernel


def follow_cpu() -> Any:
    """Runs jobs until there was none for a while. Args: control, ticket (the last one used; updated).

    Returns with the thread marked as parked, or with a wake-up already promised to it: either way the caller
    must wait to be woken, unless QUIT is set.
    """
    from ..cpu import vector_ops as v

    run = _make_run()

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        control = v.get_i64(args)
        words = control + THREADS + THREAD_BYTES * thread
        idle = 0
        while True:
            ticket = v.atomic_load(words + TICKET)
            if ticket != v.get_i64(args + 8):
                v.put_i64(args + 8, ticket)
                if v.atomic_load(control + QUIT):
                    return
                run(thread, ticket % PLACES, control)
                idle = 0
                continue
            idle += 1
            if idle < SPINS:
                v.pause()
            elif idle < SPINS + IDLE_YIELDS:
                v.sched_yield()
            else:
                v.atomic_swap(words + PARKED, 1)
                # a job published meanwhile either saw the mark, and wakes us, or did not, and we take the
                # mark back
                if v.atomic_load(words + TICKET) != v.get_i64(args + 8) and v.atomic_swap(words + PARKED, 0):
                    idle = 0
                    continue
                return

    return kernel
