"""The loops that run a recorded step on a team of threads, without Python in between.

A tape is rows of (kernel address, argument address, barrier flag). Thread 0 leads; the others wait in
`follow` for a job that names them: not every thread takes part in every job (cpu/attendance.py says why).
All synchronisation goes through words of `control`: the work counters, words of the leader and of the job,
words of each thread, and those by which threads tell each other of a barrier.
"""

from __future__ import annotations

from typing import Any

MAX_THREADS = 512

LINE_BYTES = 128  # words that different threads write lie this far apart

# Byte offsets into the control block. COUNTERS: two work counters, which ops before and behind a barrier use
# by turns. BARRIER: how many barriers there were before the job, the end of a job counted as one.
# ASLEEP: how many threads of the job publish found asleep.
COUNTERS, JOBS, THIS_JOB, THREADS = 0, 2 * LINE_BYTES, 3 * LINE_BYTES, 4 * LINE_BYTES
JOB, LED, QUIT, ASLEEP = (JOBS + 8 * i for i in range(4))
TAPE, N_ROWS, N_ACTIVE, BARRIER, TRACE = (THIS_JOB + 8 * i for i in range(5))

# Words of a traced job, 0 otherwise. BOUNDS: the address of the first rows of its stages, and behind them its
# number of rows. TIMES: the address of the first thread's times, TIMES_BYTES before those of the next.
# A thread's times are pairs of words: the clock and the counter of ticks when it began; for each stage the
# ticks when it was done and those that it waited; the clock and the ticks at the end.
BOUNDS, N_STAGES, TIMES, TIMES_BYTES = (8 * i for i in range(4))
PAIR = 2

# Words of one thread. TICKET: the last job that named it * 1024 + its place in that job. DONE: the ticket of
# the last job that it is done with. PARKED: it sleeps. WAKE: publish found it asleep. WALL_NS, OWN_NS: time
# spent in jobs by the clock on the wall, and by the thread's own, which stands still while something else has
# the core. TIME: two words for the system's answer.
TICKET, DONE, PARKED, WAKE, WALL_NS, OWN_NS, TIME = (8 * i for i in range(7))
# Behind them, by place, a line for each round of a barrier: the last one that whoever tells it has come to.
ARRIVALS, ROUNDS = LINE_BYTES, (MAX_THREADS - 1).bit_length()
THREAD_BYTES = ARRIVALS + LINE_BYTES * ROUNDS
PLACES = 1024

SPINS = 2000  # pauses before a waiting thread starts to yield its core
IDLE_YIELDS = 4000  # yields, some milliseconds, before an idle thread goes to sleep


def control_bytes(n_threads: int) -> int:
    return THREADS + THREAD_BYTES * n_threads


def make_wait_for() -> Any:
    """An inline wait_for(word, value): until the word at that address is at least as large."""
    from ..cpu import vector_ops as v

    @v.inline
    def wait_for(word: int, value: int) -> None:
        spins = 0
        while v.atomic_load(word) < value:
            spins += 1
            if spins < SPINS:
                v.pause()
            else:
                v.sched_yield()

    return wait_for


def _make_run() -> Any:
    from ..cpu import clock
    from ..cpu import vector_ops as v

    nanoseconds, ticks, wall, own = clock.nanoseconds, clock.ticks, clock.WALL, clock.OWN
    wait_for = make_wait_for()

    @v.inline
    def counter_before(control: int, barrier: int) -> int:
        """The work counter of ops before this barrier, one of which may draw from it: it starts at 0."""
        return control + COUNTERS + barrier % 2 * LINE_BYTES

    @v.inline
    def wait(control: int, place: int, n_threads: int, barrier: int) -> None:
        """A dissemination barrier (Hensgen, Finkel and Manber, 1988): in every round a thread tells the one
        so many places on that it is here, and hears the same from so many places back, twice as many each
        time.
        """
        words, distance = THREADS + ARRIVALS, 1
        while distance < n_threads:
            told = (place + distance) % n_threads
            v.atomic_publish(control + words + told * THREAD_BYTES, barrier)
            wait_for(control + words + place * THREAD_BYTES, barrier)
            words, distance = words + LINE_BYTES, 2 * distance
        if place == 0:  # nobody uses it before the next barrier
            v.put_i64(counter_before(control, barrier), 0)

    @v.inline
    def replay(control: int, place: int, n_threads: int, barrier: int) -> int:
        """`barrier`: the number of the first. Returns: of the one that would follow the last op."""
        tape, n_rows = v.get_i64(control + TAPE), v.get_i64(control + N_ROWS)
        for i in range(n_rows):
            row, counter = tape + i * 24, counter_before(control, barrier)
            v.call_kernel(v.get_i64(row), place, n_threads, counter, v.get_i64(row + 8))
            if v.get_i64(row + 16) and i < n_rows - 1:
                wait(control, place, n_threads, barrier)
                barrier += 1
        return barrier

    @v.inline
    def replay_traced(control: int, place: int, n_threads: int, barrier: int, answer: int) -> int:
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
                row, counter = tape + i * 24, counter_before(control, barrier)
                v.call_kernel(v.get_i64(row), place, n_threads, counter, v.get_i64(row + 8))
                read = v.get_i64(row + 16) and i < n_rows - 1
                if read:
                    arrived = ticks(answer)
                    wait(control, place, n_threads, barrier)
                    barrier += 1
                    now = ticks(answer)
                    waited += now - arrived
            if not read:
                now = ticks(answer)
            v.put_i64(out, now)
            v.put_i64(out + 8, waited)
        v.put_i64(out + 16, nanoseconds(wall, answer))
        v.put_i64(out + 24, ticks(answer))
        return barrier

    @v.inline
    def run(thread: int, place: int, control: int) -> int:
        """Thread `thread`'s part of the job, as number `place` of those that take part. Returns: the number
        of the barrier that would come next.
        """
        words = control + THREADS + THREAD_BYTES * thread
        began_wall, began_own = nanoseconds(wall, words + TIME), nanoseconds(own, words + TIME)
        n_threads, barrier = v.get_i64(control + N_ACTIVE), v.get_i64(control + BARRIER) + 1
        if v.get_i64(control + TRACE + BOUNDS):
            barrier = replay_traced(control, place, n_threads, barrier, words + TIME)
        else:
            barrier = replay(control, place, n_threads, barrier)
        v.put_i64(words + WALL_NS, v.get_i64(words + WALL_NS) + nanoseconds(wall, words + TIME) - began_wall)
        v.put_i64(words + OWN_NS, v.get_i64(words + OWN_NS) + nanoseconds(own, words + TIME) - began_own)
        return barrier

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
        job, n_asleep = v.atomic_add(control + JOB, 1) + 1, 0
        for place in range(1, n_active):
            words = control + THREADS + THREAD_BYTES * v.get_i64(args + 32 + 8 * place)
            v.atomic_store(words + TICKET, job * PLACES + place)
            asleep = v.atomic_swap(words + PARKED, 0)
            v.put_i64(words + WAKE, asleep)
            n_asleep += asleep
        v.put_i64(control + ASLEEP, n_asleep)

    return kernel


def lead_cpu() -> Any:
    """Runs the published tape as thread 0; returns when all threads are done. Args: as publish_cpu."""
    from ..cpu import vector_ops as v

    run, wait_for = _make_run(), make_wait_for()

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        control = v.get_i64(args)
        barrier = run(0, 0, control)
        for place in range(1, v.get_i64(args + 24)):
            words = control + THREADS + THREAD_BYTES * v.get_i64(args + 32 + 8 * place)
            wait_for(words + DONE, v.get_i64(words + TICKET))
        v.put_i64(control + COUNTERS + barrier % 2 * LINE_BYTES, 0)
        v.put_i64(control + BARRIER, barrier)
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
                v.atomic_publish(words + DONE, ticket)
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
