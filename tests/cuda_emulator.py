"""Runs CUDA kernels without a GPU: the threads of a block in greenlets, one block after another.

A kernel is built with the emulated vocabulary in place of device_ops and runs as plain Python. Threads run
until they wait for others; `seed` shuffles who goes first, for a missing barrier may hide behind one order.
Integers are Python's, so a kernel must cast what may pass 64 bits; floats are numpy's float32. That a kernel
computes nothing in float64 shows in its PTX, not here.
"""

from __future__ import annotations

import contextvars
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cuda_emulated_async import Beside
from cuda_emulated_memory import NUMBERS, EmulationError, Memory, Null, Pointer, Running, poison
from greenlet import getcurrent, greenlet

from yakvrt.kernels.cuda_kernel import CudaKernel

WARP, WARPGROUP = 32, 128
OWN_FILES = {str(path) for path in Path(__file__).parent.glob("cuda_emulat*.py")}


def call_site() -> tuple[Any, int]:
    """The place in the kernel, or in a function it calls, that uses the op now running."""
    frame = sys._getframe(3)  # behind the op and what it called
    while (code := frame.f_code).co_filename in OWN_FILES:
        assert frame.f_back is not None
        frame = frame.f_back
    return code, frame.f_lasti


def line_of(name: str, site: tuple[Any, int]) -> str:
    code, instruction = site
    lines = [line for start, end, line in code.co_lines() if start <= instruction < end]
    return f"{name} in line {lines[0] if lines else '?'}"


class Thread:
    """One CUDA thread. `copies` and `products` are under way: groups, the last of them still open. `fences`:
    how many barriers of the block lay before each of its fence_async. `waits_for`: the name of an op where it
    waits for all lanes of its warp, all threads of its block, or for what `until` tells. `greenlet`: from
    its first wait on its own; before, it may share that of threads that ended.
    """

    __slots__ = (
        "block",
        "combine",
        "copies",
        "ended",
        "fenced",
        "fences",
        "greenlet",
        "lane",
        "number",
        "products",
        "result",
        "seen",
        "site",
        "stamp",
        "until",
        "value",
        "waits_for",
        "warp",
    )

    def __init__(self, block: Block, number: int) -> None:
        self.block, self.number, self.ended = block, number, False
        self.warp, self.lane = divmod(number, WARP)
        self.stamp = (0, number, self.warp, 0, 0)
        self.waits_for, self.value, self.site = "", None, (None, 0)
        self.combine: Callable[[list[Any]], list[Any]] | None = None
        self.result: Any = None
        self.copies: list[list[Callable[[], None]]] = [[]]
        self.products: list[list[Any]] = [[]]
        self.fenced, self.fences = False, list[int]()
        self.seen: dict[Any, int] = {}  # phases of barriers in shared memory whose end it knows of
        self.until: Callable[[], bool] | None = None
        self.greenlet: greenlet

    def error(self, what: str) -> EmulationError:
        x, y = self.block.index
        return EmulationError(f"thread {self.number} of block ({x}, {y}) {what}")

    def wait(
        self,
        name: str,
        value: Any = None,
        combine: Callable[[list[Any]], list[Any]] | None = None,
        n: int = WARP,
    ) -> Any:
        """Waits for the warp, or warpgroup of n threads, whose values `combine` turns into as many results;
        without it for the block.
        """
        self.waits_for, self.value, self.combine = name, value, combine
        self.site = call_site()
        block = self.block
        if combine is not None:
            block.waiting[n][self.number // n] += 1
        # the next one goes on at once: returning to the scheduler in between would double the switches
        for thread in block.ready:
            Running.thread = thread
            thread.greenlet.switch()
            return self.result
        block.scheduler.switch()
        return self.result

    def wait_until(self, name: str, until: Callable[[], bool]) -> None:
        if not until():
            self.until = until
            self.wait(name)

    def passed_warp_barrier(self) -> None:
        barriers, number, warp, passed, fences = self.stamp
        self.stamp = (barriers, number, warp, passed + 1, fences)

    def passed_fence(self) -> None:
        barriers, number, warp, passed, fences = self.stamp
        self.fences.append(barriers)
        self.stamp = (barriers, number, warp, passed, fences + 1)


class Block:
    """The threads of one block and what they share."""

    def __init__(
        self, index: tuple[int, int], grid: tuple[int, int], kernel: CudaKernel, arguments: tuple[Any, ...]
    ) -> None:
        self.index, self.grid = index, grid
        self.scheduler = getcurrent()
        self.body = partial(kernel.function, *arguments)
        self.threads = [Thread(self, number) for number in range(kernel.threads)]
        self.ready: Iterator[Thread] = iter(())  # whose turn it is in this round
        # threads of each warp and warpgroup that wait for the rest of it
        self.waiting = {n: [0] * -(-kernel.threads // n) for n in (WARP, WARPGROUP)}
        self._arrays: dict[Any, Memory] = {}
        self._dynamic = poison(np.empty(kernel.shared_bytes, np.uint8))
        self.beside = Beside(self._dynamic)

    def shared(self, n: int, number: type[np.generic]) -> Pointer:
        """The array of one place in the kernel."""
        code, instruction = call_site()
        site = (id(code), instruction)  # hashing code takes long
        if site not in self._arrays:
            array = poison(np.empty(n, number))
            self._arrays[site] = Memory(f"shared array {len(self._arrays)}", array, watched=True)
        return Pointer(self._arrays[site])

    def dynamic(self, offset: int, number: type[np.generic]) -> Pointer:
        """Races are found among pointers to the same type of number only."""
        size = np.dtype(number).itemsize
        if number not in self._arrays:
            array = self._dynamic[: len(self._dynamic) // size * size].view(number)
            self._arrays[number] = self.beside.watch(Memory("dynamic shared memory", array, watched=True))
        if offset % 16:
            raise Running.thread.error(f"takes dynamic memory at byte {offset}, which is no multiple of 16")
        return Pointer(self._arrays[number], offset // size)

    def run(self, rng: random.Random | None) -> None:
        round_ = list(self.threads)
        if rng:
            rng.shuffle(round_)
        self._start(round_)
        round_ = self._released()
        while round_:
            if rng:
                rng.shuffle(round_)
            self.ready = iter(round_)
            for thread in self.ready:
                Running.thread = thread
                thread.greenlet.switch()
            round_ = self._released()
        if left := self.beside.left():
            raise EmulationError(f"block {self.index} ends with {left} under way")

    def _start(self, threads: list[Thread]) -> None:
        """Runs threads until they wait: where one does, another greenlet goes on with the next."""
        context, body, left = contextvars.copy_context(), self.body, iter(threads)

        def work() -> None:
            here = getcurrent()
            for thread in left:
                Running.thread, thread.greenlet = thread, here
                body()
                thread.ended = True

        while left.__length_hint__():
            worker = greenlet(work)
            worker.gr_context = context.copy()  # numpy keeps there what it does about overflows
            worker.switch()

    def _released(self) -> list[Thread]:
        """Whose turn it is next; none once all have ended."""
        round_ = [
            thread
            for n, counts in self.waiting.items()
            for number, n_waiting in enumerate(counts)
            if n_waiting
            for thread in self._released_team(n, number)
        ]
        round_ = round_ or self._released_waiters()
        if not round_ and not all(thread.ended for thread in self.threads):
            round_ = self._released_block()
        return round_

    def _released_team(self, n: int, number: int) -> list[Thread]:
        """The threads of a warp or warpgroup, where all of them have come to the same op."""
        team = self.threads[number * n : (number + 1) * n]
        first = team[0]
        if self.waiting[n][number] < n:
            if n > WARP:
                return []  # other warps may still come
            if ended := [thread for thread in team if thread.ended]:
                lanes = ", ".join(str(thread.lane) for thread in ended)
                raise self._stuck(team, f"lanes {lanes} have ended")
            raise self._stuck(team, "deadlock")
        self.waiting[n][number] = 0
        if not all(thread.site == first.site for thread in team):
            raise self._stuck(team, "the lanes of a warp diverge")
        assert first.combine is not None
        Running.thread = first
        for thread, result in zip(team, first.combine([thread.value for thread in team]), strict=True):
            thread.result = result
        return team

    def _released_waiters(self) -> list[Thread]:
        """Those whose condition holds; copies arrive, one after another, when all threads wait."""
        waiters = [thread for thread in self.threads if thread.until] if self.beside.barriers else []
        while waiters:
            if released := [thread for thread in waiters if thread.until and thread.until()]:
                for thread in released:
                    thread.until = None
                return released
            if not self.beside.next_copy_arrives():
                raise self._stuck(self.threads, "deadlock")
        return []

    def _released_block(self) -> list[Thread]:
        """All threads, where they have come to the same barrier."""
        if any(thread.ended for thread in self.threads):
            raise self._stuck(self.threads, "some threads have ended")
        first = self.threads[0]
        if not all(thread.site == first.site for thread in self.threads):
            raise self._stuck(self.threads, "divergent barriers")
        for thread in self.threads:
            barriers, number, warp, passed, fences = thread.stamp
            thread.stamp = (barriers + 1, number, warp, passed, fences)
        if self.beside.barriers:
            self._share_seen()
        return list(self.threads)

    def _share_seen(self) -> None:
        seen: dict[Any, int] = {}
        for thread in self.threads:
            for barrier, phase in thread.seen.items():
                seen[barrier] = max(phase, seen.get(barrier, 0))
        for thread in self.threads:
            thread.seen = dict(seen)

    def _stuck(self, threads: list[Thread], why: str) -> EmulationError:
        places: dict[str, list[int]] = {}
        for thread in threads:
            if not thread.ended:
                places.setdefault(line_of(thread.waits_for, thread.site), []).append(thread.number)
        shown = "; ".join(f"{len(numbers)} from {numbers[0]} wait at {p}" for p, numbers in places.items())
        return EmulationError(f"block {self.index}: {why}; threads: {shown}")


def launch(kernel: CudaKernel, grid: int | tuple[int, int], *arguments: Any, seed: int | None = None) -> None:
    """Runs every block of the grid. Pointers are contiguous numpy arrays, as if each were allocated for
    itself, a Pointer, or None for the address 0.

    Raises: EmulationError.
    """
    parameters = kernel.parameters()
    assert len(parameters) == len(arguments), f"{len(arguments)} arguments for {', '.join(parameters)}"
    values = tuple(
        _argument(name, word, value)
        for (name, word), value in zip(parameters.items(), arguments, strict=True)
    )
    n_x, n_y = grid if isinstance(grid, tuple) else (grid, 1)
    blocks = [(x, y) for y in range(n_y) for x in range(n_x)]
    rng = random.Random(seed) if seed is not None else None
    if rng:
        rng.shuffle(blocks)
    with np.errstate(all="ignore"):
        for index in blocks:
            Block(index, (n_x, n_y), kernel, values).run(rng)


def _argument(name: str, word: str, value: Any) -> Any:
    """A value as a parameter of this type receives it."""
    number = NUMBERS[word.removesuffix("*")]
    if not word.endswith("*"):
        held = number(value)
        assert held == value or number is np.float32, f"{name} = {value} is no {word}"
        return held if number is np.float32 else int(held)
    if value is None:
        return Null()
    if isinstance(value, Pointer):
        return value
    assert value.dtype == number, f"{name} points to {word}, not to {value.dtype}"
    assert value.flags.c_contiguous, f"{name} must be contiguous"
    return Pointer(Memory(name, value.reshape(-1)))
