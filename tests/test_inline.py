"""Functions that kernels call: what is the same is compiled once, what is not is never taken for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from yakvrt.cpu.inline import inline


def make_scaled(factor: Any) -> Any:
    @inline
    def scaled(x: float) -> float:
        return x * factor

    return scaled


def make_shifted(factor: Any) -> Any:
    @inline
    def shifted(x: float) -> float:
        return x + factor

    return shifted


def test_the_same_is_made_once() -> None:
    assert make_scaled(3) is make_scaled(3)
    assert make_scaled(make_shifted(2)) is make_scaled(make_shifted(2))
    assert make_scaled(np.float32(0.5)) is make_scaled(np.float32(0.5))


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 2), (1, 1.0), (1, True), (0.0, -0.0), (0.5, np.float32(0.5)), ((1, 2), (1.0, 2.0))],
    ids=str,
)
def test_other_values_make_another(one: Any, other: Any) -> None:
    assert make_scaled(one) is not make_scaled(other)


def test_other_code_makes_another() -> None:
    assert make_scaled(3) is not make_shifted(3)


def test_a_value_still_to_come() -> None:
    def made(value: Any) -> Any:
        @inline
        def later(x: float) -> float:
            return x + value_of

        value_of = value
        return later

    assert made(1) is not made(1)
