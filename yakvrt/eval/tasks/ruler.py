"""RULER: needles, variable tracking and word counting at given lengths.

Source: arXiv 2404.06654 and github.com/NVIDIA/RULER. Its task names, prompts and scoring (string_match_all);
samples are drawn anew, so they are not its very samples. A length counts the prompt and the tokens to
generate, as there; the start of the answer that RULER gives the model ends the user's turn. Without its
question answering (qa_1, qa_2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from yakvrt.eval.sample import Intensity, Sample
from yakvrt.eval.tasks.entry import TaskEntry
from yakvrt.eval.tasks.fill import fill
from yakvrt.eval.tasks.needlebench import ESSAYS, read_essays
from yakvrt.eval.tasks.options import Option
from yakvrt.eval.tasks.ruler_niah import MAX_TOKENS, NEEDLE_TASKS, Drawn, draw_needle_sample
from yakvrt.eval.tasks.ruler_other import (
    CWE_TOKENS,
    FWE_TOKENS,
    VT_TOKENS,
    draw_common_words,
    draw_frequent_words,
    draw_variable_tracking,
)
from yakvrt.eval.tasks.string_match import share_held
from yakvrt.eval.tasks.word_lists import words

TOKENS = {**dict.fromkeys(NEEDLE_TASKS, MAX_TOKENS), "vt": VT_TOKENS, "cwe": CWE_TOKENS, "fwe": FWE_TOKENS}
# Tasks whose answer takes the whole text.
INTENSIVE = {"cwe", "fwe"}
# A text this much shorter than asked for ran out of words.
FULL_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Ruler:
    essay: list[str]
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    repeats: int
    name: str = "ruler"

    @property
    def intensity(self) -> Intensity:
        return "high" if INTENSIVE.issuperset(self.tasks) else "low"

    def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
        for repeat in range(self.repeats):
            for task in self.tasks:
                for length in self.lengths:
                    rng = Random(f"ruler {task} {length} {seed} {repeat}")
                    limit = length - TOKENS[task]
                    drawn = self._draw(task, length, limit, count, rng)
                    what = f"{task}, its {TOKENS[task]} tokens of answer kept free,"
                    prompt, pieces = fill(drawn.build, drawn.most, limit, count, what)
                    if pieces == drawn.most and count(prompt) < FULL_SHARE * limit:
                        have = f"{task} has words for {count(prompt)} tokens"
                        raise ValueError(f"{have}, not for {length}; give a shorter length")
                    facts = {"task": task, "length": length, "expected": drawn.expected}
                    yield Sample(f"{task}-{length}-{repeat}", prompt, drawn.answer, TOKENS[task], facts)

    def _draw(self, task: str, length: int, limit: int, count: Callable[[str], int], rng: Random) -> Drawn:
        if task in NEEDLE_TASKS:
            nouns, adjectives = words(["noun"]), words(["adjective"])
            return draw_needle_sample(NEEDLE_TASKS[task], limit, nouns, adjectives, self.essay, rng)
        if task == "vt":
            return draw_variable_tracking(limit, count, rng)
        if task == "cwe":
            return draw_common_words(limit, length, words(["noun", "adjective", "verb"]), rng)
        return draw_frequent_words(limit, rng)

    def score(self, sample: Sample, text: str) -> dict[str, float]:
        return {"score": share_held(sample.facts["expected"], text, ignore_case=True)}


def _open(options: Mapping[str, Any], data_dir: Path | None) -> Ruler:
    tasks = options["tasks"]
    essay: list[str] = []
    if any(task in NEEDLE_TASKS and NEEDLE_TASKS[task].haystack == "essay" for task in tasks):
        essay = " ".join(read_essays(data_dir, "ruler (its tasks niah_single_2 and _3, multi*)")).split()
    if any(task in NEEDLE_TASKS or task == "cwe" for task in tasks):
        words(["noun"])  # missing words are told before anything runs
    return Ruler(essay, tasks, options["lengths"], options["repeats"])


ENTRY = TaskEntry(
    "ruler",
    "RULER: needles (niah_*), variable tracking (vt), common and frequent words (cwe, fwe)",
    "low",
    (
        Option(
            "tasks", "words", ",".join(TOKENS), "RULER's names, separated by commas", choices=tuple(TOKENS)
        ),
        Option("lengths", "lengths", "4k,8k,16k,32k", "tokens of a prompt and its answer"),
        Option("repeats", "int", "5", "samples for each task and length; RULER takes 500", 1, 10000),
    ),
    _open,
    f"{ESSAYS[0]}, for tasks in essays",
)
