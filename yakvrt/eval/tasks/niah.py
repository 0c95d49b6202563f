"""Needle in a haystack: one made-up fact in essays, on a grid of lengths and depths.

Source: NeedleBench's single-needle retrieval, github.com/open-compass/opencompass, needlebench_v2: its
needles, prompt and scoring. Such tests say little about a KV method (arXiv 2604.08426): they are here for
comparison.
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
    essay_words,
    read_essays,
    read_needles,
    with_needles,
)
from yakvrt.eval.tasks.options import Option
from yakvrt.eval.tasks.string_match import share_held

MAX_TOKENS = 128
PROMPT = (
    "This is a test of long-text capability. You need to first read the long document below, and then answer"
    " the final question based on the information in the document.\n"
    "The content of the long document is as follows\n\n<Document>\n{document}\n</Document>\n\n"
    "Based on the information in the document, now please answer: {question}\n"
)


@dataclass(frozen=True, slots=True)
class NeedleInAHaystack:
    essays: list[str]
    needles: list[Needle]
    lengths: tuple[int, ...]
    depths: tuple[int, ...]
    repeats: int
    name: str = "niah"
    intensity: Intensity = "low"

    def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
        for repeat in range(self.repeats):
            rng = Random(f"niah {seed} {repeat}")
            words = essay_words(self.essays, max(self.lengths), rng)
            needle = rng.choice(self.needles)
            for length in self.lengths:
                for depth in self.depths:
                    build = partial(_prompt, words, needle, depth)
                    prompt, _ = fill(build, length, length, count, "a needle with its question")
                    facts = {"length": length, "depth": depth, "keyword": needle.keyword}
                    yield Sample(f"niah-{length}-{depth}-{repeat}", prompt, needle.answer, MAX_TOKENS, facts)

    def score(self, sample: Sample, text: str) -> dict[str, float]:
        return {"score": share_held([sample.facts["keyword"]], text, ignore_case=False)}


def _prompt(words: Sequence[str], needle: Needle, depth: int, n: int) -> str:
    return PROMPT.format(document=with_needles(words[:n], [needle], [depth]), question=needle.question)


def _open(options: Mapping[str, Any], data_dir: Path | None) -> NeedleInAHaystack:
    return NeedleInAHaystack(
        read_essays(data_dir, "niah"),
        read_needles(data_dir, "niah"),
        options["lengths"],
        options["depths"],
        options["repeats"],
    )


ENTRY = TaskEntry(
    "niah",
    "NeedleBench: one fact in essays, on a grid of lengths and depths",
    "low",
    (
        Option("lengths", "lengths", "4k,8k,16k,32k", "tokens of a prompt"),
        Option("depths", "ints", "0,25,50,75,100", "where the fact stands, in percent", 0, 100),
        Option("repeats", "int", "1", "samples for each length and depth", 1, 10000),
    ),
    _open,
    f"{ESSAYS[0]} and {NEEDLES}",
)
