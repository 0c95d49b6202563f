"""MultiNeedle: several made-up facts in essays, all asked for at once.

Source: NeedleBench's multi-needle retrieval, github.com/open-compass/opencompass, needlebench_v2. Its prompt
and scoring; unlike it, the model's own tokenizer fills a length, and every repeat draws needles of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from yakvrt.eval.sample import Intensity, Sample
from yakvrt.eval.tasks.entry import TaskEntry
from yakvrt.eval.tasks.fill import fill
from yakvrt.eval.tasks.needlebench import (
    ESSAYS,
    NEEDLES,
    Needle,
    draw_needles,
    essay_words,
    read_essays,
    read_needles,
    with_needles,
)
from yakvrt.eval.tasks.options import Option
from yakvrt.eval.tasks.string_match import share_held

MAX_TOKENS = 1024
COMMA = "\N{IDEOGRAPHIC COMMA}"  # NeedleBench joins English questions by it as well
PROMPT = (
    "This is a test of long-text capability. You need to first read the long document below, and then answer"
    " the final questions one by one based on the information in the document.\n"
    "The content of the long document is as follows\n\n<Document>\n{document}\n</Document>\n\n"
    "Based on the information in the document, now please answer: {question}\n"
)


def joint_question(needles: Sequence[Needle]) -> str:
    """All questions, then the form of the answer."""
    questions = COMMA.join(needle.question.partition("?")[0] + "?" for needle in needles)
    forms = COMMA.join(needle.question.split("'")[1].partition(".")[0] for needle in needles)
    return f"{questions}Please answer in the format of '{forms}'"


@dataclass(frozen=True, slots=True)
class MultiNeedle:
    """Samples for all lengths of a repeat come before the next repeat, so that the first ones cover the
    lengths."""

    essays: list[str]
    needles: list[Needle]
    lengths: tuple[int, ...]
    number: int
    repeats: int
    name: str = "multineedle"
    intensity: Intensity = "low"

    def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
        depths = [round(100 * i / max(self.number - 1, 1)) for i in range(self.number)]
        for repeat in range(self.repeats):
            rng = Random(f"multineedle {seed} {repeat}")
            needles = draw_needles(self.needles, self.number, rng)
            words = essay_words(self.essays, max(self.lengths), rng)
            for length in self.lengths:
                build = partial(_prompt, words, needles, depths)
                prompt, _ = fill(build, length, length, count, f"a sample of {self.number} needles")
                answer = COMMA.join(needle.answer.rstrip(".") for needle in needles) + "."
                keywords = [needle.keyword for needle in needles]
                facts = {"length": length, "depths": depths, "keywords": keywords}
                yield Sample(f"multineedle-{length}-{repeat}", prompt, answer, MAX_TOKENS, facts)

    def score(self, sample: Sample, text: str) -> dict[str, float]:
        """The share of keywords in the text, and for each depth 0 or 100."""
        keywords = sample.facts["keywords"]
        score = {"score": share_held(keywords, text, ignore_case=False)}
        for depth, keyword in zip(sample.facts["depths"], keywords, strict=True):
            score[f"depth_{depth}"] = share_held([keyword], text, ignore_case=False)
        return score


def _prompt(words: Sequence[str], needles: Sequence[Needle], depths: Sequence[int], n: int) -> str:
    return PROMPT.format(document=with_needles(words[:n], needles, depths), question=joint_question(needles))


def _open(options: Mapping[str, Any], data_dir: Path | None) -> MultiNeedle:
    essays, needles = read_essays(data_dir, "multineedle"), read_needles(data_dir, "multineedle")
    draw_needles(needles, options["needles"], Random(0))  # refuses too many before anything runs
    return MultiNeedle(essays, needles, options["lengths"], options["needles"], options["repeats"])


ENTRY = TaskEntry(
    "multineedle",
    "NeedleBench: 11 facts in essays, asked for at once (the paper: lengths=128000,repeats=100)",
    "low",
    (
        Option("lengths", "lengths", "4k,8k,16k,32k,64k,128000", "tokens of a prompt"),
        Option("needles", "int", "11", "facts in a prompt, evenly from depth 0 % to 100 %", 1, 20),
        Option("repeats", "int", "10", "samples for each length", 1, 10000),
    ),
    _open,
    f"{ESSAYS[0]} and {NEEDLES}",
)
