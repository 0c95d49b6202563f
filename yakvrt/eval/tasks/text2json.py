"""Text2JSON: the entries of long texts as a JSON list. Reads the paper's own file.

Source: arXiv 2604.08426.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yakvrt.eval.sample import Intensity, Sample
from yakvrt.eval.tasks.data_files import find_file, parse_json, read_jsonl, text_field
from yakvrt.eval.tasks.entry import TaskEntry
from yakvrt.eval.tasks.text2json_score import fold, score_entries

# The longest gold answer of the paper's 500 has 905 tokens.
MAX_TOKENS = 1024
FILES = ("text2json.jsonl", "text_to_json.jsonl")
SOURCE = "github.com/yandex-research/context-intensive-kv-offloading (unpack it)"


def score_text2json(sample: Sample, text: str) -> dict[str, float]:
    """Text2JSON's score; the sample's answer is the gold list."""
    return score_entries(json.loads(sample.answer), text)


@dataclass(frozen=True, slots=True)
class Text2Json:
    """Lines of `problem` (the user's whole turn) and `answer` (the gold list as JSON text)."""

    path: Path
    name: str = "text2json"
    intensity: Intensity = "high"

    def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
        """In the file's order; those with a repeated gold name are left out, as in the paper."""
        for index, (where, record) in enumerate(read_jsonl(self.path)):
            problem, answer = text_field(record, "problem", where), text_field(record, "answer", where)
            gold = _gold(answer, where)
            if len({fold(entry["name"]) for entry in gold}) == len(gold):
                facts = {"entries": len(gold)}
                yield Sample(f"text2json-{index}", problem, answer, MAX_TOKENS, facts)

    def score(self, sample: Sample, text: str) -> dict[str, float]:
        return score_text2json(sample, text)


def _gold(answer: str, where: str) -> list[dict[str, str]]:
    gold = parse_json(answer, f"{where}: answer")
    if not isinstance(gold, list) or not gold:
        raise ValueError(f"{where}: the answer must be a JSON list of at least one entry")
    for entry in gold:
        texts = isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values())
        if not texts or "name" not in entry or len(entry) != 3:
            raise ValueError(f"{where}: each entry of the answer must hold a name and two more texts")
    return gold


def _open(options: Mapping[str, Any], data_dir: Path | None) -> Text2Json:
    return Text2Json(find_file(data_dir, FILES, "text2json", SOURCE))


ENTRY = TaskEntry(
    "text2json",
    "the paper's benchmark: entries of long texts as JSON (needs its file)",
    "high",
    (),
    _open,
    "text2json.jsonl",
)
