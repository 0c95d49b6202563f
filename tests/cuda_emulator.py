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
from collections.abc import Callable
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
    frame = sys._getframe(1)
    while frame.f_code.co_filename in OWN_FILES:
        assert frame.f_back is not None
        frame = frame.f_back
    return frame.f_code, frame.f_lasti


class Waiting:
    """What a thread waits for: all lanes of its warp, or all threads of its block."""

    __slots__ = ("combine", "name", "site", "value", "whole_block")

    def __init__(self, name: str, value: Any, combine: Callable[[list[Any]], list[Any]] | None) -> None:
        self.name, self.value, self.combine = name, value, combine
        self.whole_block = combine is None
        self.site = call_site()

    def line(self) -> str:
        code, instruction = self.site
        lines = [line for start, end, line in code.co_lines() if start <= instruction < end]
        return f"{self.name} in line {lines[0] if lines else '?'}"


class Thread:
    """One CUDA thread. `copies` are asynchronous copies under way: groups, the last of them still open."""

    def __init__(self, block: Block, number: int) -> None:
        self.block, self.number = block, number
        self.warp, self.lane = divmod(number, WARP)
        self.stamp = (0, number, self.warp, 0)
        self.waiting: Waiting | None = None
        self.result: Any = None
        self.copies: list[list[Callable[[], None]]] = [[]]
        self.greenlet: Any = None

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
        self.waiting = Waiting(name, value, combine)
        self.block.scheduler.switch()
        return self.result

    def passed_warp_barrier(self) -> None:
        barriers, number, warp, passed = self.stamp
        self.stamp = (barriers, number, warp, passed + 1)


class Block:
    """The threads of one block and what they share."""

    def __init__(self, index: tuple[int, int], grid: tuple[int, int], kernel: CudaKernel) -> None:
        self.index, self.grid = index, grid
        self.scheduler = getcurrent()
        self.threads = [Thread(self, number) for number in range(kernel.threads)]
        self.warps = [self.threads[i : i + WARP] for i in range(0, kernel.threads, WARP)]
        self._arrays: dict[Any, Memory] = {}
        self._dynamic = poison(np.empty(kernel.shared_bytes, np.uint8))

    def shared(self, n: int, number: type[np.generic]) -> Pointer:
        """The array of one place in the kernel."""
        site = call_site()
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

    def run(
        self, function: Callable[..., None], arguments: tuple[Any, ...], rng: random.Random | None
    ) -> None:
        context = contextvars.copy_context()  # numpy keeps there what it does about overflows
        for thread in self.threads:
            thread.greenlet = greenlet(function)
            thread.greenlet.gr_context = context.copy()
        ready = list(self.threads)
        started: set[int] = set()
        while ready:
            if rng:
                rng.shuffle(ready)
            for thread in ready:
                Running.thread = thread
                thread.waiting = None
                first = thread.number not in started
                started.add(thread.number)
                thread.greenlet.switch(*(arguments if first else ()))
            ready = [thread for warp in self.warps for thread in self._released_warp(warp)]
            if not ready and not all(thread.ended for thread in self.threads):
                ready = self._released_block()

    def _released_warp(self, warp: list[Thread]) -> list[Thread]:
        """The lanes, where all of them have come to the same op."""
        waiting = [thread.waiting for thread in warp if thread.waiting and not thread.ended]
        if not any(not w.whole_block for w in waiting):
            return []
        if ended := [thread for thread in warp if thread.ended]:
            lanes = ", ".join(str(thread.lane) for thread in ended)
            raise self._stuck(warp, f"lanes {lanes} have ended")
        first = waiting[0]
        if any(w.whole_block for w in waiting):
            raise self._stuck(warp, "deadlock")
        if any(w.site != first.site for w in waiting):
            raise self._stuck(warp, "the lanes of a warp diverge")
        assert first.combine is not None
        for thread, result in zip(warp, first.combine([w.value for w in waiting]), strict=True):
            thread.result = result
        return warp

    def _released_block(self) -> list[Thread]:
        """All threads, where they have come to the same barrier."""
        if any(thread.ended for thread in self.threads):
            raise self._stuck(self.threads, "some threads have ended")
        sites = {thread.waiting.site for thread in self.threads if thread.waiting}
        if len(sites) > 1:
            raise self._stuck(self.threads, "divergent barriers")
        for thread in self.threads:
            barriers, number, warp, passed = thread.stamp
            thread.stamp = (barriers + 1, number, warp, passed)
        return self.threads

    def _stuck(self, threads: list[Thread], why: str) -> EmulationError:
        places: dict[str, list[int]] = {}
        for thread in threads:
            if thread.waiting and not thread.ended:
                places.setdefault(thread.waiting.line(), []).append(thread.number)
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
            Block(index, (n_x, n_y), kernel).run(kernel.function, values, rng)


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
