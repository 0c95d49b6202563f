"""RULER's needle tasks: niah_single_1..3, niah_multikey_1..3, niah_multivalue, niah_multiquery.

Source: github.com/NVIDIA/RULER: prompts, needles, haystacks and depths. Sentences of essays end at . ! or ?
here, where RULER asks nltk.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from yakvrt.eval.tasks.interleave import interleave

MAX_TOKENS = 128
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
DEPTHS = tuple(round(100 * i / 39) for i in range(40))
SENTENCE_END = re.compile(r"(?<=[.!?]) ")
MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it."
    " I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text?"
    " The special magic {kind} for {query} mentioned in the provided text are"
)
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it."
    " I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text?"
    " The special magic {kind} for {query} mentioned in the provided text is"
)


@dataclass(frozen=True, slots=True)
class NeedleTask:
    """One of RULER's settings: what the text around the needles is, what keys and values are, how many."""

    haystack: Literal["noise", "essay", "needle"]
    key_kind: Literal["words", "uuids"] = "words"
    value_kind: Literal["numbers", "uuids"] = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


NEEDLE_TASKS = {
    "niah_single_1": NeedleTask("noise"),
    "niah_single_2": NeedleTask("essay"),
    "niah_single_3": NeedleTask("essay", value_kind="uuids"),
    "niah_multikey_1": NeedleTask("essay", keys=4),
    "niah_multikey_2": NeedleTask("needle"),
    "niah_multikey_3": NeedleTask("needle", key_kind="uuids", value_kind="uuids"),
    "niah_multivalue": NeedleTask("essay", values=4),
    "niah_multiquery": NeedleTask("essay", keys=4, queries=4),
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sample whose text can still be of any length: build(n) has n pieces around what is asked for."""

    build: Callable[[int], str]
    most: int
    expected: list[str]
    answer: str


def draw_needle_sample(
    task: NeedleTask,
    most: int,
    nouns: Sequence[str],
    adjectives: Sequence[str],
    essay: Sequence[str],
    rng: Random,
) -> Drawn:
    """`essay` holds the words of the essays; `most` bounds the pieces: words of an essay, or lines."""

    def key() -> str:
        if task.key_kind == "uuids":
            return random_uuid(rng)
        return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"

    def value() -> str:
        return random_uuid(rng) if task.value_kind == "uuids" else str(rng.randint(1_000_000, 9_999_999))

    def line(name: str, number: str) -> str:
        return NEEDLE.format(kind=task.value_kind, key=name, value=number)

    values: dict[str, list[str]] = {}
    while len(values) < task.keys:
        values.setdefault(key(), [value() for _ in range(task.values)])
    needles = [line(name, number) for name, numbers in values.items() for number in numbers]
    rng.shuffle(needles)
    asked = rng.sample(list(values), task.queries)
    expected = [number for name in asked for number in values[name]]
    places = sorted(rng.random() for _ in needles)
    depths = sorted(rng.sample(DEPTHS, len(needles)))
    others: list[str] = []

    def context(n: int) -> str:
        if task.haystack == "essay":
            return essay_around(essay, n, needles, depths)
        while task.haystack == "needle" and len(others) < n:
            other = key()
            others.append(line(other, value()) if other not in values else NOISE)
        lines = [NOISE] * n if task.haystack == "noise" else others[:n]
        return "\n".join(interleave(lines, needles, places))

    one = len(expected) == 1
    query = asked[0] if len(asked) == 1 else ", ".join(asked[:-1]) + f", and {asked[-1]}"
    kind = task.value_kind[:-1] if one else task.value_kind

    def build(n: int) -> str:
        return (ONE if one else MANY).format(kind=kind, context=context(n), query=query)

    return Drawn(build, most, expected, joined(expected) + ".")


def random_uuid(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def joined(items: Sequence[str]) -> str:
    """Items as a sentence lists them: a; a and b; a, b, and c."""
    if len(items) < 3:
        return " and ".join(items)
    return ", ".join(items[:-1]) + f", and {items[-1]}"


def essay_around(essay: Sequence[str], n: int, needles: Sequence[str], depths: Sequence[int]) -> str:
    """The first n words of the essays, repeated where they end, with needles between their sentences."""
    words = [*essay] * (n // len(essay)) + [*essay[: n % len(essay)]]
    sentences = SENTENCE_END.split(" ".join(words)) if words else []
    return " ".join(interleave(sentences, needles, [depth / 100 for depth in depths]))
