"""The memory that transfers are timed on: a large source that can be told apart, and what it is copied to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from yakvrt.cpu.memory import reserved
from yakvrt.cpu.tile_memory import TileMemory
from yakvrt.free_memory import available_memory
from yakvrt.memory_plan import gib

SLACK = 4096  # bytes behind both: rows may start with an offset, and nothing may be written past the end
WORK_BYTES = 256 << 20  # the interpreter, kernels, ids, pieces that are compared
POISON = 0xFF
ODD = np.uint64(0x9E3779B97F4A7C15)  # multiples of an odd number: no two words are alike
FILL_WORDS = 1 << 20


class HostMemory:
    """Source of `pool_bytes`, target of `out_bytes`, in huge or small pages, all of them touched.

    Shapes: source uint8 [pool_bytes + SLACK], out uint8 [out_bytes + SLACK], both on a page.
    `huge_bytes`: how much of the source the system really keeps in huge pages; 0 where it does not say.
    Owns: both; they last as long as this object.
    Raises: ValueError where less memory is free or the system refuses it.
    """

    def __init__(self, pages: str, pool_bytes: int, out_bytes: int) -> None:
        check_memory(pool_bytes, out_bytes)
        self.pool_bytes = pool_bytes
        try:
            self.source, self.out = (mapped(pages, n + SLACK) for n in (pool_bytes, out_bytes))
        except (OSError, MemoryError) as error:
            raise ValueError(
                f"the system refuses a source of {gib(pool_bytes)} and a target of {gib(out_bytes)} "
                f"({error}): lower --pool and the sizes"
            ) from error
        fill(self.source)
        self.out[:] = POISON
        self.huge_bytes = min(huge_bytes_of(self.source), pool_bytes)

    def poison(self, n_bytes: int) -> None:
        """Makes sure that nothing of an earlier test is left in the target's first bytes."""
        self.out[: n_bytes + SLACK] = POISON


def pattern(first: int, last: int) -> np.ndarray:
    """What a source holds at its words first .. last - 1: uint64 [last - first]."""
    return np.arange(first, last, dtype=np.uint64) * ODD


def fill(source: np.ndarray, first: int = 0) -> None:
    """Makes the words of a source all different, or of a part that begins with its word `first`.

    Shapes: uint8 [n], 8-byte aligned.
    """
    words = source[: len(source) // 8 * 8].view(np.uint64)
    for start in range(0, len(words), FILL_WORDS):
        end = min(start + FILL_WORDS, len(words))
        words[start:end] = pattern(first + start, first + end)


def check_memory(pool_bytes: int, out_bytes: int) -> None:
    """Raises: ValueError where a source and a target of these sizes find no room."""
    free = available_memory()
    if (needed := pool_bytes + out_bytes + WORK_BYTES) > free:
        raise ValueError(
            f"a source of {gib(pool_bytes)} and a target of {gib(out_bytes)} need {gib(needed)} with the "
            f"work on them, and {gib(free)} is free: lower --pool and the sizes"
        )


def mapped(pages: str, n_bytes: int) -> np.ndarray:
    """Memory of its own in huge or small pages, not touched yet: uint8 [n_bytes]."""
    return TileMemory.empty(n_bytes).data if pages == "huge" else reserved((n_bytes,))


def huge_bytes_of(array: np.ndarray) -> int:
    """Bytes of the array's mapping that lie in huge pages."""
    first = array.ctypes.data
    inside = False
    try:
        for line in Path("/proc/self/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                begin, end = (int(word, 16) for word in words[0].split("-"))
                inside = begin <= first < end
            elif inside and words[0] == "AnonHugePages:":
                return int(words[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0
