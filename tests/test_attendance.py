"""Threads on busy cores rest: when, for how long, and that results do not depend on it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from kernel_team import KernelTeam, count
from take_rows import TAKE_ROWS

from yakvrt.cpu.attendance import REST_NS, WINDOW_NS, Attendance
from yakvrt.cpu.tape import Tape


class Threads:
    """The clocks of a team, of which each thread gets a part of its core."""

    def __init__(self, n_threads: int) -> None:
        self.attendance = Attendance(n_threads)
        self.wall, self.own = np.zeros((2, n_threads), np.int64)
        self.now = 0

    def work(self, parts: list[float], steps: int = 20) -> list[int]:
        """Steps of 2 ms where core i is ours for parts[i] of the time; who attends afterwards."""
        for _ in range(steps):
            self.now += 2_000_000
            for i, place in enumerate(self.attendance.active):
                thread = int(place) if i else 0
                self.wall[thread] += 2_000_000
                self.own[thread] += int(2_000_000 * parts[place])
            if self.attendance.is_due(int(self.wall[0]), self.now):
                self.attendance.update(self.wall, self.own, self.now)
        return [int(place) for place in self.attendance.active]


def test_on_a_quiet_machine_all_attend() -> None:
    threads = Threads(4)
    assert threads.work([0.97] * 4, steps=500) == [0, 1, 2, 3]


@pytest.mark.parametrize("busy", [0, 1, 3])
def test_one_busy_core_rests_and_comes_back(busy: int) -> None:
    threads = Threads(4)
    parts = [1.0] * 4
    parts[busy] = 0.5
    free = [place for place in range(4) if place != busy]
    assert threads.work(parts) == free
    attended = sum(len(threads.work(parts, 1)) == 4 for _ in range(1000))
    tried = 1000 * 2_000_000 / (REST_NS + WINDOW_NS)
    assert 0 < attended < 1.2 * tried * (WINDOW_NS / 2_000_000 + 1)  # only to try it again
    threads.work([1.0] * 4, steps=REST_NS // 2_000_000 + 40)
    assert threads.work([1.0] * 4) == [0, 1, 2, 3]


def test_of_two_threads_one_may_rest() -> None:
    assert Threads(2).work([0.5, 1.0]) == [1]
    assert Threads(2).work([1.0, 0.5]) == [0]
    assert Threads(2).work([0.7, 1.0]) == [0, 1]


def test_where_all_are_busy_one_is_left() -> None:
    assert Threads(2).work([0.5, 0.4], 16) == [0]
    threads = Threads(8)
    parts = [0.5, 0.4, 0.5, 0.4, 0.3, 0.3, 0.6, 0.5]
    assert [len(threads.work(parts, 16)) for _ in range(4)] == [4, 2, 1, 1]
    assert threads.work(parts, 1) == [6]
    threads.work([1.0] * 8, steps=REST_NS // 2_000_000 + 40)
    assert threads.work([1.0] * 8) == list(range(8))


def test_where_most_are_busy_all_stay() -> None:
    assert Threads(8).work([0.5] * 6 + [1.0] * 2) == list(range(8))
    assert Threads(8).work([0.1] * 6 + [1.0] * 2) == [6, 7]
    assert Threads(3).work([0.8, 0.8, 0.8]) == [0, 1, 2]


def test_a_short_disturbance_is_none() -> None:
    threads = Threads(2)
    threads.work([1.0, 1.0], 9)
    threads.work([1.0, 0.0], 3)
    assert threads.work([1.0, 1.0], 15) == [0, 1]


def test_any_subset_gives_the_same_result() -> None:
    """Jobs for changing subsets of five threads, some of them asleep by then."""
    team = KernelTeam(5)
    buffers = [np.zeros((37, 32), np.float32) for _ in range(6)]
    tape = Tape()
    rows = np.arange(37)[::-1].copy()
    for source, target in itertools.pairwise(buffers):
        arguments = (target, target.strides[0], source, source.strides[0], 32, rows, count(37))
        tape.add(TAKE_ROWS, *arguments)
    tape.finish(team.cache.load(tape.specs))
    crew = team.team._crew
    rng = np.random.default_rng(5)
    for repeat in range(300):
        active = np.flatnonzero(rng.integers(0, 2, 5) | (np.arange(5) == repeat % 5))
        buffers[0][:] = repeat + np.arange(37)[:, None]
        crew.announce(tape.words, active)
        crew.complete()
        np.testing.assert_array_equal(buffers[-1], buffers[0][::-1])
    assert (crew.wall_ns > 0).all()
    assert (crew.own_ns > 0).all()
    team.team.close()
