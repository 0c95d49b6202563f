"""Options of tasks as plain data, and how their values are read from text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# All but an int are lists, written with commas; a length is a count of tokens, with k for 1024.
Kind = Literal["int", "words", "ints", "lengths"]

MIN_LENGTH = 256
MAX_LENGTH = 1 << 21
MAX_VALUES = 100
WHOLE = re.compile(r"\d{1,18}")
NUMBER = re.compile(r"(\d{1,9})([kKmM]?)")
FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20}


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `default` is written as a user would write it. `low` and `high` bound numbers, `choices`
    words."""

    name: str
    kind: Kind
    default: str
    help: str
    low: int = 0
    high: int = 1 << 20
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Any:
        """The option's value: an int, a tuple of str or a tuple of int.

        Raises: ValueError.
        """
        if self.kind == "words":
            return tuple(self._word(part.strip()) for part in self._parts(text))
        if self.kind == "lengths":
            return tuple(read_length(self.name, part.strip()) for part in self._parts(text))
        if self.kind == "ints":
            return tuple(self._number(part.strip()) for part in self._parts(text))
        return self._number(text)

    def _parts(self, text: str) -> list[str]:
        parts = text.split(",")
        if len(parts) > MAX_VALUES:
            raise ValueError(f"{self.name} has {len(parts)} values; give at most {MAX_VALUES}")
        return parts

    def _word(self, text: str) -> str:
        if self.choices and text not in self.choices:
            raise ValueError(f"{self.name}={text!r} is unknown; choose of {', '.join(self.choices)}")
        return text

    def _number(self, text: str) -> int:
        if not WHOLE.fullmatch(text):
            raise ValueError(f"{self.name}: {text!r} is no whole number; the default is {self.default}")
        if not self.low <= int(text) <= self.high:
            raise ValueError(f"{self.name}: {text} is out of range; give {self.low} to {self.high}")
        return int(text)


def read_length(name: str, text: str) -> int:
    """Tokens, as in 4096, 4k or 128k.

    Raises: ValueError.
    """
    match = NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{name}: {text!r} is no number of tokens; write 4096 or 4k, several as 4k,8k")
    tokens = int(match[1]) * FACTORS[match[2].lower()]
    if not MIN_LENGTH <= tokens <= MAX_LENGTH:
        raise ValueError(f"{name}: {text} tokens are out of range; give {MIN_LENGTH} to {MAX_LENGTH}")
    return tokens


def read_options(task: str, options: tuple[Option, ...], given: Mapping[str, str]) -> dict[str, Any]:
    """Every option's value, the default's where none is given.

    Raises: ValueError.
    """
    names = [option.name for option in options]
    for name in given:
        if name not in names:
            known = f"it has {', '.join(names)}" if names else "it has none"
            raise ValueError(f"the task {task} has no option {name!r}; {known}")
    return {option.name: option.read(given.get(option.name, option.default)) for option in options}
