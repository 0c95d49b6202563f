"""Flags of benchmarks that take several values: lists and ranges in llama-bench's way of writing them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TypeVar

MAX_VALUES = 1000
MAX_TOKENS = 1 << 24
RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?")
Value = TypeVar("Value")


def numbers(text: str, limit: int = MAX_TOKENS) -> list[int]:
    """Reads `a,b`, `first-last`, `first-last+step` and `first-last*mult` in any mixture.

    Raises: ValueError.
    """
    values: list[int] = []
    for part in text.split(","):
        match = RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(
                f"{part!r} is no number or range: write 512, 128-1024, 128-1024+128 or 128-1024*2"
            )
        first = int(match[1])
        last = int(match[2] or first)
        factor = int(match[4] or 1)
        if match[3] == "*" and (first < 1 or factor < 2):
            raise ValueError(f"the range {part!r} never ends: start at 1 or more and multiply by 2 or more")
        if last > limit:
            raise ValueError(f"{part!r} is over the limit of {limit}: give a smaller number")
        if factor < 1 or last < first:
            raise ValueError(f"{part!r} does not rise: write first-last with first <= last")
        value = first
        while value <= last:
            values.append(value)
            value = value * factor if match[3] == "*" else value + factor
            if len(values) > MAX_VALUES:
                raise ValueError(f"{text!r} holds more than {MAX_VALUES} values: take larger steps")
    return values


def words(text: str) -> list[str]:
    """Reads a list of names.

    Raises: ValueError.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"{text!r} has an empty name: write the names as a,b")
    return names


def argument(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """The reader with its sentence kept, which argparse shows for this exception only."""

    def checked(text: str) -> Value:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def flat(given: list[list[Value]] | None, default: list[Value]) -> list[Value]:
    """The values of a repeated flag, or the default."""
    return default if given is None else [value for values in given for value in values]
