"""Has Numba write object files only, and optimise a function once, within the kernel that calls it.

As it is, Numba optimises every function for itself before it links it into those that call it, and makes each
runnable in its own process, where nobody calls it: together more work than the kernel is.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import CPUCodeLibrary, JITCPUCodegen
from numba.core.registry import cpu_target


class _Library(CPUCodeLibrary):
    """A function and those it calls, as LLVM IR, not optimised until optimise()."""

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return 0

    def _finalize_specific(self) -> None:
        pass

    def _optimize_final_module(self) -> None:
        pass

    def optimise(self) -> None:
        super()._optimize_final_module()  # type: ignore[no-untyped-call]


class _Codegen(JITCPUCodegen):
    """Optimises for this CPU, as Numba does."""

    _library_class: Any = _Library

    def _add_module(self, module: Any) -> None:
        pass

    def set_env(self, env_name: str, env: Any) -> None:
        pass


def write_objects_only() -> None:
    """From now on, for this process."""
    codegen: Any = _Codegen
    cpu_target.target_context._internal_codegen = codegen("yakvrt")
