"""Has Numba write object files only: as it is, it also makes each function it compiles runnable in its own
process, which here nobody calls, and that takes as long as the object file.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import CPUCodeLibrary, JITCPUCodegen
from numba.core.registry import cpu_target


class _Library(CPUCodeLibrary):
    """One function and those it calls, as optimised LLVM IR."""

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return 0

    def _finalize_specific(self) -> None:
        pass


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
