"""What a builder `<op>_cuda(g, ...)` returns: a kernel's Python function and how it is launched."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

NUMBERS = ("u8", "u16", "u32", "u64", "i32", "i64", "f32")


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel cannot do without for one unit, such as a row: bytes moved and operations."""

    unit: str
    n_bytes: int
    n_operations: int = 0


@dataclass(frozen=True, slots=True)
class CudaKernel:
    """A kernel over raw pointers.

    `signature` holds one word per parameter of `function`: a number type, or a type and `*` for a pointer to
    device memory. A launch has `threads` per block, in one dimension, and `shared_bytes` of dynamic shared
    memory. `opcodes` are beginnings of SASS instructions that the machine code must hold.
    Registers are kept so few that a multiprocessor can hold `resident_blocks`. `architecture` is the only one
    that has the kernel's instructions, None for all.

    Raises: ValueError where the signature does not fit the function.
    """

    function: Callable[..., None]
    signature: str
    threads: int
    shared_bytes: int = 0
    opcodes: tuple[str, ...] = ()
    work: Work | None = None
    resident_blocks: int = 1
    architecture: str | None = None

    def __post_init__(self) -> None:
        names = list(inspect.signature(self.function).parameters)
        words = self.signature.split()
        if len(names) != len(words):
            raise ValueError(f"{len(words)} types for the parameters {', '.join(names)}: give one for each")
        if unknown := [word for word in words if word.removesuffix("*") not in NUMBERS]:
            raise ValueError(f"unknown type {unknown[0]!r} in a signature: use {', '.join(NUMBERS)}, or T*")
        if self.threads % 32 or not 32 <= self.threads <= 1024:
            raise ValueError(f"{self.threads} threads a block: use whole warps, 32 to 1024 threads")

    def parameters(self) -> dict[str, str]:
        """Name and type of every parameter, in order."""
        return dict(zip(inspect.signature(self.function).parameters, self.signature.split(), strict=True))
