"""Runs CUDA kernels without a GPU: one greenlet for each thread of a block, one block after another.

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
from cuda_emulated_memory import NUMBERS, EmulationError, Memory, Null, Pointer, Running, poison
from greenlet import getcurrent, greenlet

from yakvrt.kernels.cuda_kernel import CudaKernel

WARP = 32
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
    """One CUDA thread. `copies` are asynchronous copies under way: groups, the last of them still open.
    `waits_for`: the name of an op where it waits for all lanes of its warp or all threads of its block.
    """

    __slots__ = (
        "block",
        "combine",
        "copies",
        "greenlet",
        "lane",
        "number",
        "result",
        "site",
        "stamp",
        "value",
        "waits_for",
        "warp",
    )

    def __init__(self, block: Block, number: int, body: Callable[[], None]) -> None:
        self.block, self.number = block, number
        self.warp, self.lane = divmod(number, WARP)
        self.stamp = (0, number, self.warp, 0)
        self.waits_for, self.value, self.site = "", None, (None, 0)
        self.combine: Callable[[list[Any]], list[Any]] | None = None
        self.result: Any = None
        self.copies: list[list[Callable[[], None]]] = [[]]
        self.greenlet = greenlet(body)

    @property
    def ended(self) -> bool:
        return bool(self.greenlet.dead)

    def error(self, what: str) -> EmulationError:
        x, y = self.block.index
        return EmulationError(f"thread {self.number} of block ({x}, {y}) {what}")

    def wait(
        self, name: str, value: Any = None, combine: Callable[[list[Any]], list[Any]] | None = None
    ) -> Any:
        """Waits for the warp, whose 32 values `combine` turns into 32 results; without it for the block."""
        self.waits_for, self.value, self.combine = name, value, combine
        self.site = call_site()
        block = self.block
        if combine is not None:
            block.lanes_waiting[self.warp] += 1
        # the next one goes on at once: returning to the scheduler in between would double the switches
        for thread in block.ready:
            Running.thread = thread
            thread.greenlet.switch()
            return self.result
        block.scheduler.switch()
        return self.result

    def passed_warp_barrier(self) -> None:
        barriers, number, warp, passed = self.stamp
        self.stamp = (barriers, number, warp, passed + 1)


class Block:
    """The threads of one block and what they share."""

    def __init__(
        self, index: tuple[int, int], grid: tuple[int, int], kernel: CudaKernel, arguments: tuple[Any, ...]
    ) -> None:
        self.index, self.grid = index, grid
        self.scheduler = getcurrent()
        body = partial(kernel.function, *arguments)
        self.threads = [Thread(self, number, body) for number in range(kernel.threads)]
        self.warps = [self.threads[i : i + WARP] for i in range(0, kernel.threads, WARP)]
        self.ready: Iterator[Thread] = iter(())  # whose turn it is in this round
        self.lanes_waiting = [0] * len(self.warps)  # for the rest of their warp
        self._arrays: dict[Any, Memory] = {}
        self._dynamic = poison(np.empty(kernel.shared_bytes, np.uint8))

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
            self._arrays[number] = Memory("dynamic shared memory", array, watched=True)
        if offset % 16:
            raise Running.thread.error(f"takes dynamic memory at byte {offset}, which is no multiple of 16")
        return Pointer(self._arrays[number], offset // size)

    def run(self, rng: random.Random | None) -> None:
        context = contextvars.copy_context()  # numpy keeps there what it does about overflows
        for thread in self.threads:
            thread.greenlet.gr_context = context.copy()
        round_, started = list(self.threads), False
        while round_:
            if rng:
                rng.shuffle(round_)
            turns = iter(round_)
            # threads start here, one beside the other, not one inside the other
            self.ready = turns if started else iter(())
            for thread in turns:
                Running.thread = thread
                thread.greenlet.switch()
            started = True
            round_ = [
                thread
                for warp, n_waiting in enumerate(self.lanes_waiting)
                if n_waiting
                for thread in self._released_warp(warp)
            ]
            if not round_ and not all(thread.ended for thread in self.threads):
                round_ = self._released_block()

    def _released_warp(self, number: int) -> list[Thread]:
        """The lanes, where all of them have come to the same op."""
        warp = self.warps[number]
        first = warp[0]
        if self.lanes_waiting[number] < WARP:
            if ended := [thread for thread in warp if thread.ended]:
                lanes = ", ".join(str(thread.lane) for thread in ended)
                raise self._stuck(warp, f"lanes {lanes} have ended")
            raise self._stuck(warp, "deadlock")
        self.lanes_waiting[number] = 0
        if not all(thread.site == first.site for thread in warp):
            raise self._stuck(warp, "the lanes of a warp diverge")
        assert first.combine is not None
        for thread, result in zip(warp, first.combine([thread.value for thread in warp]), strict=True):
            thread.result = result
        return warp

    def _released_block(self) -> list[Thread]:
        """All threads, where they have come to the same barrier."""
        if any(thread.ended for thread in self.threads):
            raise self._stuck(self.threads, "some threads have ended")
        first = self.threads[0]
        if not all(thread.site == first.site for thread in self.threads):
            raise self._stuck(self.threads, "divergent barriers")
        for thread in self.threads:
            barriers, number, warp, passed = thread.stamp
            thread.stamp = (barriers + 1, number, warp, passed)
        return self.threads

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
