"""What uses a block's dynamic shared memory beside its threads: bulk copies that write it, products of
warpgroups that read it. Both are seen only behind the waits that PTX asks for, and nobody else may touch what
they use until then.

A copy arrives as late as its waiters allow. Words are of 4 bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cuda_emulated_memory import Memory, Running, Stamp

BY_THREADS, BARRIER = -1, -2  # instead of the number of a copy that wrote a word
BASE = 1024  # the address of dynamic memory whose tiles are aligned


class Barrier:
    """An mbarrier; `made`: when and by whom."""

    def __init__(self, n_threads: int, made: Stamp) -> None:
        self.n_threads, self.missing, self.n_bytes = n_threads, n_threads, 0
        self.phase, self.made = 0, made

    def add(self, threads: int, n_bytes: int) -> None:
        """Threads that have arrived, bytes that are expected or, less than 0, have come."""
        self.missing -= threads
        self.n_bytes += n_bytes
        if self.missing == self.n_bytes == 0:
            self.phase, self.missing = self.phase + 1, self.n_threads


@dataclass
class Copy:
    words: slice
    source: Callable[[], np.ndarray]
    barrier: Barrier
    phase: int  # of the barrier that ends when it has arrived
    arrived: bool = False


class Beside:
    """Over the bytes of a block's dynamic memory."""

    def __init__(self, held: np.ndarray) -> None:
        self.base = BASE + 128  # unless a kernel asks for alignment
        self.words = held[: len(held) // 4 * 4].view(np.uint32)
        self.barriers: dict[int, Barrier] = {}  # by their word
        self.copies: list[Copy] = []
        self._flying: list[Copy] = []
        self._products = 0
        self._memories: list[Memory] = []
        # of each word: the copy that wrote it, the products that read it, those that did so last
        self._writer, self._readers, self._read = (np.full(0, 0, np.int32) for _ in range(3))
        self._ends: list[tuple[int, int]] = []  # barriers of the block before products had ended, warpgroup

    def watch(self, memory: Memory) -> Memory:
        """A view of the same memory, in numbers of some type."""
        self._memories.append(memory)
        if len(self._writer):
            self._guard(memory)
        return memory

    def _guard(self, memory: Memory) -> None:
        size = memory.item_bytes

        def guard(i: int, writes: bool) -> None:
            for word in range(i * size // 4, max(i * size // 4 + 1, (i + 1) * size // 4)):
                if self._writer[word] != BY_THREADS or (
                    writes and (self._readers[word] or self._read[word] >= 0)
                ):
                    self._touched(word, f"{memory.name}[{i}]", writes)

        memory.guard = guard

    def _start(self) -> None:
        if not len(self._writer):
            self._writer, self._read = (np.full(len(self.words), -1, np.int32) for _ in range(2))
            self._readers = np.zeros(len(self.words), np.int32)
            for memory in self._memories:
                self._guard(memory)

    def _touched(self, word: int, name: str, writes: bool) -> None:
        """A thread reads or writes a word that copies or products have used."""
        thread, writer = Running.thread, self._writer[word]
        verb = "writes" if writes else "reads"
        if writer == BARRIER:
            raise thread.error(f"{verb} {name}, which is a barrier")
        if writer >= 0 and not self._known(self.copies[writer], thread):
            raise thread.error(f"{verb} {name}, into which a copy is under way")
        if writes:
            self._not_read(slice(word, word + 1), f"{verb} {name}")
            self._writer[word], self._read[word] = BY_THREADS, -1

    def _known(self, copy: Copy, *threads: Running) -> bool:
        return copy.arrived and all(thread.seen.get(copy.barrier, 0) > copy.phase for thread in threads)

    def _not_read(self, words: slice, what: str) -> None:
        """Raises: EmulationError where products read the words, or did and this thread cannot know their
        end.
        """
        thread = Running.thread
        if self._readers[words].any():
            raise thread.error(f"{what}, which products under way read")
        for number in np.unique(self._read[words]):
            if number >= 0:
                barriers, group = self._ends[number]
                if group != thread.number // 128 and barriers >= thread.stamp[0]:
                    raise thread.error(f"{what}, which another warpgroup's products read since the barrier")

    def _fenced(self, stamp: Stamp, together: bool) -> bool:
        """Whether its thread passed fence_async after this, and a barrier of the block after that; none is
        needed by the thread itself, unless several use the memory `together`.
        """
        now = Running.thread.stamp
        fences = Running.thread.block.threads[stamp[1]].fences
        if stamp[4] >= len(fences):
            return False
        return (stamp[1] == now[1] and not together) or fences[stamp[4]] < now[0]

    # --- barriers and copies

    def make_barrier(self, word: int, n_threads: int) -> None:
        self._start()
        self._writer[word : word + 2] = BARRIER
        self.barriers[word] = Barrier(n_threads, Running.thread.stamp)

    def barrier(self, word: int) -> Barrier:
        thread = Running.thread
        if word not in self.barriers:
            raise thread.error(f"uses a barrier at byte {4 * word} of dynamic memory, where none was made")
        found = self.barriers[word]
        if found.made[1] != thread.number and found.made[0] == thread.stamp[0]:
            raise thread.error("uses a barrier in shared memory, which another thread made since the barrier")
        return found

    def copy(self, words: slice, source: Callable[[], np.ndarray], barrier: Barrier) -> None:
        self._start()
        if not self._fenced(barrier.made, together=False):
            raise Running.thread.error("copies with a barrier that no fence_async made known")
        name = f"dynamic memory's bytes {4 * words.start} to {4 * words.stop}"
        for number in np.unique(self._writer[words]):
            if number == BARRIER or (number >= 0 and not self._known(self.copies[number], Running.thread)):
                raise Running.thread.error(f"copies to {name}, which hold a barrier or what is under way")
        self._not_read(words, f"copies to {name}")
        made = Copy(words, source, barrier, barrier.phase)
        self._writer[words], self._read[words], self.words[words] = len(self.copies), -1, 0xFFFFFFFF
        self.copies.append(made)
        self._flying.append(made)

    def next_copy_arrives(self) -> bool:
        """False where none is under way."""
        if not self._flying:
            return False
        copy = self._flying.pop(0)
        self.words[copy.words] = copy.source()
        copy.arrived = True
        copy.barrier.add(0, -4 * (copy.words.stop - copy.words.start))
        return True

    # --- products

    def begin_product(self, words: np.ndarray, threads: list[Running]) -> None:
        """Reads words, which all threads of the warpgroup must know of."""
        self._start()
        error = Running.thread.error
        writers = self._writer[words]
        for number in np.unique(writers):
            if number == BARRIER:
                raise error("multiplies what is a barrier")
            if number >= 0 and not self._known(self.copies[number], *threads):
                raise error("multiplies what a copy brings before its barrier was waited for")
        (written,) = [memory.written for memory in self._memories if memory.array.dtype == np.uint32]
        assert written is not None
        for stamp in {written[word] for word in words[writers == BY_THREADS].tolist()}:
            if stamp is None:
                raise error("multiplies what nobody wrote")
            if not self._fenced(stamp, together=True):
                raise error(
                    f"multiplies what thread {stamp[1]} wrote without fence_async and a barrier since"
                )
        self._readers[words] += 1
        self._products += 1

    def end_product(self, words: np.ndarray) -> None:
        self._readers[words] -= 1
        self._products -= 1
        self._read[words] = len(self._ends)
        self._ends.append((Running.thread.stamp[0], Running.thread.number // 128))

    def left(self) -> str:
        """What is still under way."""
        copies, products = len(self._flying), self._products
        return " and ".join(
            filter(None, [copies and f"{copies} copies", products and f"{products} products"])
        )
