"""Functions that kernels call; LLVM inlines them."""

from __future__ import annotations

from typing import Any

from numba import njit

from ..kernel_build.made_once import made_once
from .simd import FASTMATH

# Only kernels call these functions; wrappers for Python would take longer to compile than most of them.
_OPTIONS: Any = {
    "error_model": "numpy",
    "fastmath": FASTMATH,
    "nogil": True,
    "no_cfunc_wrapper": True,
    "no_cpython_wrapper": True,
}
inline = made_once(njit(**_OPTIONS))
