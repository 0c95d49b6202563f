"""What a task is made of: samples, each a prompt with its gold answer, and a score for a model's text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

# How much of its context a task needs: "low" for a fact or a few, "high" where the answer takes most of it.
Intensity = Literal["low", "high"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One question. `id` is the same in every run with the same options and seed; `facts` is JSON and holds
    what the scorer needs beside the answer, and what the report groups by (length, depth)."""

    id: str
    prompt: str  # the user's whole turn
    answer: str  # the gold answer as a model would write it, for teacher forcing and for scorers
    max_tokens: int
    facts: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """Samples and their scorer, bound to its data and options."""

    @property
    def name(self) -> str: ...

    @property
    def intensity(self) -> Intensity: ...

    def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
        """All samples, the same for a seed; `count` says how many tokens a text has.

        Raises: ValueError for missing data (what to get and where to put it) and malformed lines (by number).
        """
        ...

    def score(self, sample: Sample, text: str) -> dict[str, float]:
        """Of a model's text: "score", 0 to 100, and whatever else the task measures (precision, recall)."""
        ...
