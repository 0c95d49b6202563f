"""The thread team: order, barriers, sleeping and waking, many teams, shutdown."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import threading
import time

import numpy as np
import pytest
from kernel_team import KernelTeam, count
from take_rows import TAKE_ROWS

from yakvrt.cpu.kernel_cache import KernelCache
from yakvrt.cpu.tape import Tape
from yakvrt.cpu.team import Team
from yakvrt.kernel_build import compilers
from yakvrt.kernel_build.compilers import kept_helpers
from yakvrt.kernel_build.files import read_object, write_object
from yakvrt.kernel_build.spec import kernel


def chain(team: KernelTeam, buffers: list[np.ndarray]) -> Tape:
    """Copies buffer 0 into 1, 1 into 2, ...; wrong wherever a barrier is missing."""
    tape = Tape()
    rows = np.arange(len(buffers[0]))[::-1].copy()
    for source, target in itertools.pairwise(buffers):
        width = source.shape[1]
        strides = (target.strides[0], source.strides[0])
        tape.add(
            TAKE_ROWS,
            target,
            strides[0],
            source,
            strides[1],
            width,
            rows,
            count(len(rows)),
        )
    tape.finish(team.cache.load(tape.specs))
    return tape


def test_ops_wait_for_each_other(team: KernelTeam) -> None:
    buffers = [np.zeros((64, 32), np.float32) for _ in range(102)]
    tape = chain(team, buffers)
    for repeat in range(20):
        buffers[0][:] = np.arange(64)[:, None] + repeat
        team.team.run(tape)
        expected = buffers[0] if len(buffers) % 2 else buffers[0][::-1]
        np.testing.assert_array_equal(buffers[-1], expected)


def test_sleeping_threads_are_woken(team: KernelTeam) -> None:
    buffers = [np.zeros((16, 16), np.float32) for _ in range(4)]
    tape = chain(team, buffers)
    for pause in (0.0, 0.001, 0.05, 0.002, 0.2):
        time.sleep(pause)
        buffers[0] += 1
        team.team.run(tape)
        np.testing.assert_array_equal(buffers[-1], buffers[0][::-1])


def test_callers_from_several_threads_take_turns(team: KernelTeam) -> None:
    buffers = [np.ones((32, 16), np.float32) for _ in range(9)]
    tape = chain(team, buffers)
    callers = [threading.Thread(target=lambda: [team.team.run(tape) for _ in range(50)]) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    np.testing.assert_array_equal(buffers[-1], 1)


def test_more_threads_than_cores_sleep_and_wake() -> None:
    """Their words in the control block must not meet: the first run is announced while all may sleep."""
    team = KernelTeam(40)
    buffers = [np.zeros((64, 16), np.float32) for _ in range(4)]
    tape = chain(team, buffers)
    for pause in (0.3, 0.0, 0.3):
        time.sleep(pause)
        buffers[0] += 1
        team.team.run(tape)
        np.testing.assert_array_equal(buffers[-1], buffers[0][::-1])
    team.team.close()


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_an_interrupted_run_does_no_harm(n_threads: int) -> None:
    """Ctrl-C between announcing a tape and leading it: the next run, or close(), ends what was begun."""
    team = KernelTeam(n_threads)
    buffers = [np.zeros((64, 16), np.float32) for _ in range(6)]
    tape = chain(team, buffers)
    crew = team.team._crew
    complete = crew.complete

    def interrupted() -> None:
        raise KeyboardInterrupt

    before = os.sched_getaffinity(0)
    for repeat in range(5):
        crew.complete = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            team.team.run(tape)
        crew.complete = complete  # type: ignore[method-assign]
        buffers[0][:] = repeat + np.arange(64)[:, None]
        team.team.run(tape)
        np.testing.assert_array_equal(buffers[-1], buffers[0][::-1])
        assert os.sched_getaffinity(0) == before
    crew.complete = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        team.team.run(tape)
    crew.complete = complete  # type: ignore[method-assign]
    team.team.close()


def test_a_closed_team_and_a_forked_one_refuse(team: KernelTeam) -> None:
    tape = chain(team, [np.ones((4, 16), np.float32) for _ in range(3)])
    closed = Team(2, team.cache)
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        closed.run(tape)
    child = os.fork()
    if child == 0:
        try:
            team.team.run(tape)
        except RuntimeError as error:
            os._exit(0 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("pause_s", [0.0, 0.003, 0.02])
def test_the_end_of_a_process_waits_for_a_tape_that_runs(team: KernelTeam, pause_s: float) -> None:
    """A thread that loads a model may run its first steps then."""
    tape = chain(team, [np.ones((64, 512), np.float32) for _ in range(400)])
    ending, refused = Team(2, team.cache), []

    def work() -> None:
        with contextlib.suppress(RuntimeError):
            while True:
                ending.run(tape)
        refused.append(True)

    caller = threading.Thread(target=work, daemon=True)
    caller.start()
    time.sleep(pause_s)
    end = threading.Thread(target=ending._close, daemon=True)  # as weakref.finalize does at the exit
    end.start()
    for thread in (end, caller):
        thread.join(20)
        assert not thread.is_alive()
    assert refused


def test_a_dropped_team_ends_its_threads() -> None:
    before = threading.active_count()
    team = Team(3, KernelCache())
    assert threading.active_count() == before + 2
    del team
    gc.collect()
    assert threading.active_count() == before


def test_close_ends_the_threads() -> None:
    before = threading.active_count()
    team = Team(3, KernelCache())
    assert threading.active_count() == before + 2
    team.close()
    team.close()
    assert threading.active_count() == before


def test_affinity_of_the_caller_is_kept(team: KernelTeam) -> None:
    before = os.sched_getaffinity(0)
    team.team.run(chain(team, [np.ones((4, 16), np.float32) for _ in range(3)]))
    assert os.sched_getaffinity(0) == before


def test_a_caller_elsewhere_is_bound_for_a_job() -> None:
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("this takes two CPUs")
    own, other = sorted(before)[:2]
    cache = KernelCache()
    team = Team(1, cache, places=(frozenset({own}),))
    tape = Tape()
    tape.add(kernel("timestamp", "timestamp_cpu"), np.zeros(1, np.int64))
    tape.finish(cache.load(tape.specs))
    crew, seen = team._crew, []
    complete = crew.complete

    def looked_at() -> None:
        seen.append(os.sched_getaffinity(0))
        complete()

    crew.complete = looked_at  # type: ignore[method-assign]
    try:
        for cpu in (other, own, other):
            os.sched_setaffinity(0, {cpu})
            team.run(tape)
            assert os.sched_getaffinity(0) == {cpu}
    finally:
        os.sched_setaffinity(0, before)
        team.close()
    assert seen == [{own}] * 3


@pytest.mark.parametrize("n_threads", [0, -1, 513])
def test_a_wrong_number_of_threads_is_refused(n_threads: int) -> None:
    with pytest.raises(ValueError, match=f"{n_threads} threads"):
        Team(n_threads, KernelCache())


def test_damaged_kernels_are_compiled_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    spec = kernel("timestamp", "timestamp_cpu")
    KernelCache(tmp_path).load([spec])
    file = tmp_path / f"{spec.symbol}.o"
    good = file.read_bytes()
    for damaged in (b"", good[:100], good[:-1] + b"x"):
        file.write_bytes(damaged)
        assert read_object(file) is None
        KernelCache(tmp_path).load([spec])
        assert read_object(file) is not None


def keep_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the whole run's fixture did not."""
    monkeypatch.setattr(compilers, "_keepers", 0)
    monkeypatch.setattr(compilers, "_idle", {})


def test_helpers_are_kept_replaced_and_ended(  # type: ignore[no-untyped-def]
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever leaves first ends none."""
    keep_none(monkeypatch)
    spec = kernel("timestamp", "timestamp_cpu")
    helpers = []
    with kept_helpers():
        for number in range(3):
            with kept_helpers():
                assert KernelCache(tmp_path / str(number)).load([spec])[spec]
            (held,) = compilers._idle["yakvrt.cpu.compile"]
            helpers.append(held)
            if number == 1:
                held.process.kill()
                held.process.wait()
    first, second, third = helpers
    assert first is second
    assert third is not second
    assert third.process.returncode is not None


def test_helpers_wait_until_the_last_one_leaves(  # type: ignore[no-untyped-def]
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where two threads load models."""
    keep_none(monkeypatch)
    first, second = kept_helpers(), kept_helpers()
    first.__enter__()
    with second:
        first.__exit__(None, None, None)
        KernelCache(tmp_path).load([kernel("timestamp", "timestamp_cpu")])
        (held,) = compilers._idle["yakvrt.cpu.compile"]
        assert held.process.poll() is None
    assert held.process.returncode is not None


def test_a_helper_ends_after_so_many_kernels(  # type: ignore[no-untyped-def]
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_none(monkeypatch)
    monkeypatch.setattr(compilers, "KEPT_ANSWERS", 2)
    specs = [kernel("timestamp", "timestamp_cpu"), kernel("rms_norm", "rms_norm_cpu")]
    with kept_helpers():
        cache = KernelCache(tmp_path)
        for spec, kept in zip(specs, (1, 0), strict=True):
            assert cache.load([spec])[spec]
            assert len(compilers._idle["yakvrt.cpu.compile"]) == kept


def test_objects_are_written_whole(tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_object(tmp_path / "a.o", b"code")
    assert read_object(tmp_path / "a.o") == b"code"
    assert [p.name for p in tmp_path.iterdir()] == ["a.o"]


def test_an_unwritable_cache_still_compiles(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    blocker = tmp_path / "file"
    blocker.write_text("")
    spec = kernel("timestamp", "timestamp_cpu")
    assert KernelCache(blocker / "kernels").load([spec])[spec]
    assert "not writable" in capsys.readouterr().err
