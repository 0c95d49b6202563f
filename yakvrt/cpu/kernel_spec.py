"""The name of one compiled kernel: which builder, with which parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """`builder(*parameters)` of `module` gives the Python function that Numba compiles.

    Every kernel has the C signature void(thread, n_threads, counter, arguments) of int64.
    """

    module: str
    builder: str
    parameters: tuple[str | float, ...] = ()

    @property
    def symbol(self) -> str:
        """The kernel's linker symbol, its file name in the cache and its name in progress lines."""
        return "_".join([self.builder.removesuffix("_cpu"), *(str(p) for p in self.parameters)])

    def python_function(self) -> Callable[[int, int, int, int], None]:
        build = getattr(import_module(self.module), self.builder)
        function: Callable[[int, int, int, int], None] = build(*self.parameters)
        return function


def kernel(op: str, builder: str, *parameters: str | float) -> KernelSpec:
    """The spec of a kernel in yakvrt/kernels/<op>.py."""
    return KernelSpec(f"yakvrt.kernels.{op}", builder, parameters)
