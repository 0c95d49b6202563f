"""What one rendering of a template may cost in time and memory."""

from __future__ import annotations

import time
from typing import Any

import jinja2
from jinja2.runtime import Undefined

MAX_SECONDS = 10.0
BASE_CHARS = 32 << 20
CHARS_PER_INPUT_CHAR = 32
ENTRY_COST = 16  # characters' worth of memory charged per list or dict entry
_PLAIN = (bool, int, float, type(None), Undefined)


class TemplateLimitError(jinja2.TemplateError):
    """The template used up its time or memory."""


class Budget:
    """The time and characters left to a rendering whose input has `input_size` characters and entries."""

    __slots__ = ("_deadline", "_left")

    def __init__(self, input_size: int = 0) -> None:
        """Start the clock."""
        self._left = BASE_CHARS + CHARS_PER_INPUT_CHAR * input_size
        self._deadline = time.monotonic() + MAX_SECONDS

    def spend(self, cost: int) -> None:
        """Charge characters.

        Raises: TemplateLimitError when none are left.
        """
        self._left -= cost
        if self._left < 0:
            raise TemplateLimitError("it builds too much text")

    def tick(self, cost: int = 0) -> None:
        """Mark one step of a loop or a call, and the literal text it may write."""
        self.spend(cost + 1)
        if time.monotonic() > self._deadline:
            raise TemplateLimitError(f"it runs longer than {MAX_SECONDS:.0f} s")

    def spend_tree(self, value: Any, *, text: bool = False, indent: int = 0) -> None:
        """Charge a value through all its levels: its entries, or with `text` the length it prints to.

        Raises: TemplateLimitError when it costs too much, or prints something other than plain data.
        """
        level = 0
        pending = [value]
        while pending:
            deeper: list[Any] = []
            for item in pending:
                self.spend(ENTRY_COST + level * indent)
                if isinstance(item, str):
                    self.spend(len(item) if text else 0)
                elif isinstance(item, dict):
                    deeper.extend(item)
                    deeper.extend(item.values())
                elif isinstance(item, list | tuple):
                    deeper.extend(item)
                elif text and not isinstance(item, _PLAIN):
                    raise TemplateLimitError(f"it prints a {type(item).__name__}")
                # Entries to come are charged when visited, but must not pile up before that.
                if len(deeper) * ENTRY_COST > self._left:
                    raise TemplateLimitError("it builds too much text")
            pending = deeper
            level += 1

    def text(self, value: Any) -> str:
        """Turn a value into the text that output, `~` and the text filters make of it."""
        if isinstance(value, str):
            return value
        if not isinstance(value, _PLAIN):
            self.spend_tree(value, text=True)
        return str(value)


def shallow_cost(value: Any) -> int:
    """Characters' worth of memory of a value itself, not of what its entries hold."""
    if isinstance(value, str):
        return len(value)
    return ENTRY_COST * len(value) if isinstance(value, list | tuple | dict) else 0


def input_size(value: Any) -> int:
    """Count the characters and entries of plain data."""
    total = 0
    pending = [value]
    while pending:
        item = pending.pop()
        total += len(item) if isinstance(item, str) else 1
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)
    return total
