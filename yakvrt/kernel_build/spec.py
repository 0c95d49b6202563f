"""The name of one compiled kernel: which builder, with which parameters."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """`builder(*parameters)` of `module` gives the kernel that is compiled.

    Builders end in the name of their backend, `_cpu` or `_cuda`; `build` hands on what a backend's builders
    take before the parameters.
    """

    module: str
    builder: str
    parameters: tuple[str | float, ...] = ()

    @property
    def symbol(self) -> str:
        """The kernel's linker symbol, its file name in the cache and its name in progress lines. PTX takes no
        point in a name.
        """
        parts = [self.builder.rpartition("_")[0], *(str(p) for p in self.parameters)]
        return "_".join(parts).replace(".", "_")

    def build(self, *context: Any) -> Any:
        return getattr(import_module(self.module), self.builder)(*context, *self.parameters)


def kernel(op: str, builder: str, *parameters: str | float) -> KernelSpec:
    """The spec of a kernel in yakvrt/kernels/<op>.py."""
    return KernelSpec(f"yakvrt.kernels.{op}", builder, parameters)
