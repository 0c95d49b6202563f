"""A text continued: how far a KV method's predictions move on the text that follows a long prompt.

Perplexity and KL divergence of long contexts: nothing is generated, and the fidelity readings are the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yakvrt.eval.sample import Intensity, Sample
from yakvrt.eval.tasks.data_files import read_text
from yakvrt.eval.tasks.entry import TaskEntry
from yakvrt.eval.tasks.fill import fill
from yakvrt.eval.tasks.needlebench import WORD
from yakvrt.eval.tasks.options import Option

# A window this much shorter than asked for came to the end of its text.
FULL_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Continuation:
    """Windows of texts, one after another: `lengths` tokens of prompt, then `answer` tokens to predict."""

    texts: dict[str, str]
    lengths: tuple[int, ...]
    answer: int
    windows: int
    name: str = "continuation"
    intensity: Intensity = "low"

    def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
        """The same for every seed. Windows that end beyond the text are left out.

        Raises: ValueError when a text is too short for any window of any length, or has too long words.
        """
        for file, text in self.texts.items():
            words = WORD.findall(text)
            made = 0
            for length in self.lengths:
                start = 0
                for window in range(self.windows):
                    prompt, taken = _window(words, start, length, count)
                    answer, more = _window(words, start + taken, self.answer, count)
                    at_end = start + taken + more == len(words)
                    if not (taken and more) or (at_end and count(answer) < FULL_SHARE * self.answer):
                        break
                    start += taken + more
                    made += 1
                    yield Sample(
                        f"{file}-{length}-{window}", prompt, answer, 0, {"length": length, "file": file}
                    )
            if not made:
                have = f"{file} has {count(text)} tokens in {len(words)} words, which are not cut"
                need = f"{min(self.lengths)} + {self.answer} tokens"
                raise ValueError(f"{have}; a window takes {need}: give smaller lengths or another text")

    def score(self, sample: Sample, text: str) -> dict[str, float]:
        """Nothing was generated, so nothing is scored."""
        return {}


def _window(words: list[str], start: int, length: int, count: Callable[[str], int]) -> tuple[str, int]:
    most = min(length, len(words) - start)
    return fill(lambda n: "".join(words[start : start + n]), most, length, count, "a window")


def _open(options: Mapping[str, Any], data_dir: Path | None) -> Continuation:
    if data_dir is None:
        raise ValueError("continuation needs a text: name a .txt file, or a folder of them, with --data")
    paths = [data_dir] if data_dir.is_file() else sorted(data_dir.glob("*.txt"))
    if not paths:
        raise ValueError(f"--data {data_dir} holds no .txt file; name a text file, or a folder of them")
    texts = {path.name: read_text(path) for path in paths}
    return Continuation(texts, options["lengths"], options["answer"], options["windows"])


ENTRY = TaskEntry(
    "continuation",
    "long-context perplexity and KL divergence: the text that follows a long prompt; nothing is generated",
    "low",
    (
        Option("lengths", "lengths", "4k,8k,16k,32k", "tokens of a prompt"),
        Option("answer", "int", "512", "tokens of the text that follows", 16, 1 << 16),
        Option("windows", "int", "4", "windows of a text for each length, one after another", 1, 10000),
    ),
    _open,
    "text files, *.txt",
)
