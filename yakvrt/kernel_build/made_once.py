"""Functions that kernels call, each compiled once in a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def made_once(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decorator like `make`, which is Numba's.

    Builders define their functions anew for every kernel: one with the same code over the same values is the
    one made before, which need not be compiled again.
    """
    held: dict[Any, Any] = {}

    def inline(function: Any) -> Any:
        """A function that kernels call; it becomes part of them."""
        key = _key(function)
        made = held.get(key)
        # a name may have got another value since
        if key is None or made is None or _key(made.py_func) != key:
            made = held[key] = make(function)
        return made

    return inline


def _key(function: Any) -> Any:
    """None where a value is still to come."""
    try:
        values = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:
        return None
    return function.__module__, function.__code__, *map(_identity, values)


def _identity(value: Any) -> Any:
    """Numbers that are equal may differ in type or sign; what else is another object may be another thing."""
    if isinstance(value, int | float | str | np.generic):
        return type(value), repr(value)
    return id(value)  # which stays taken, for the function made of it holds it
