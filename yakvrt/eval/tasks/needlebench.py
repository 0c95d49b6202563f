"""NeedleBench's essays and needles, and documents with needles at given depths.

Source: github.com/open-compass/opencompass, needlebench_v2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from yakvrt.eval.tasks.data_files import find_file, parse_json, read_jsonl, read_text, text_field
from yakvrt.eval.tasks.interleave import interleave

ESSAYS = ("PaulGrahamEssays.jsonl", "PaulGrahamEssays.json")
NEEDLES = "needles.jsonl"
SOURCE = "the data set opencompass/NeedleBench"
# A draw takes what comes first, and may leave too few that differ from it.
DRAWS = 100
WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True, slots=True)
class Needle:
    """A made-up fact, the question that asks for it, and the words that answer it."""

    text: str
    question: str
    answer: str
    subject: str
    keyword: str


def read_needles(data_dir: Path | None, task: str) -> list[Needle]:
    """The English needles.

    Raises: ValueError.
    """
    path = find_file(data_dir, (NEEDLES,), task, SOURCE)
    needles = []
    for where, record in read_jsonl(path):
        if record.get("language") != "English":
            continue
        keys = ("needle", "retrieval_question", "gold_standard_answer", "arg1", "arg2")
        needle = Needle(*(text_field(record, key, where) for key in keys))
        if needle.keyword not in needle.text or needle.question.count("'") < 2:
            raise ValueError(
                f"{where}: the needle must hold its arg2, the question an answer's form in quotes"
            )
        needles.append(needle)
    if not needles:
        raise ValueError(f"{path} has no English needles; get it anew from {SOURCE}")
    return needles


def read_essays(data_dir: Path | None, task: str) -> list[str]:
    """The essays, from NeedleBench's lines or RULER's one object, each with a `text`.

    Raises: ValueError.
    """
    path = find_file(data_dir, ESSAYS, task, SOURCE)
    if path.suffix == ".json":
        record: Any = parse_json(read_text(path), str(path))
        essays = [text_field(record if isinstance(record, dict) else {}, "text", str(path))]
    else:
        essays = [text_field(record, "text", where) for where, record in read_jsonl(path)]
    if not any(essay.strip() for essay in essays):
        raise ValueError(f"{path} has no text; get it anew from {SOURCE}")
    return essays


def draw_needles(needles: Sequence[Needle], number: int, rng: Random) -> list[Needle]:
    """Needles of different subjects and different answers.

    Raises: ValueError when there are not so many.
    """
    most = 0
    for _ in range(DRAWS):
        drawn: list[Needle] = []
        for needle in rng.sample(needles, len(needles)):
            if all(needle.subject != other.subject and needle.keyword != other.keyword for other in drawn):
                drawn.append(needle)
            if len(drawn) == number:
                return drawn
        most = max(most, len(drawn))
    raise ValueError(f"{NEEDLES} has only {most} needles that differ in subject and answer, not {number}")


def essay_words(essays: Sequence[str], number: int, rng: Random) -> list[str]:
    """That many words, each with the space before it, of the essays in random order, from the start again
    where they end."""
    words: list[str] = []
    order = rng.sample(essays, len(essays))
    while len(words) < number:
        for essay in order:
            words += WORD.findall("\n" + essay)
            if len(words) >= number:
                break
    return words[:number]


def with_needles(words: Sequence[str], needles: Sequence[Needle], depths: Sequence[int]) -> str:
    """The words with each needle as a line of its own, at its depth in percent of the words; the depths
    rise."""
    lines = [f"\n{needle.text}\n" for needle in needles]
    return "".join(interleave(words, lines, [depth / 100 for depth in depths]))
