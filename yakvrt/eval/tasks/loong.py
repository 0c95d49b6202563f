"""Loong: questions over several long documents: spotlight, comparison, clustering, chain of reasoning.

Source: arXiv 2406.17419, github.com/MozerWang/Loong: its prompts and how documents are put into them. Its
judge is a large model; the score here is another one (loong_score.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from yakvrt.eval.sample import Intensity, Sample
from yakvrt.eval.tasks.data_files import find_file, parse_json, read_jsonl, read_text, text_field
from yakvrt.eval.tasks.entry import TaskEntry
from yakvrt.eval.tasks.loong_score import score_answer
from yakvrt.eval.tasks.options import Option

MAX_TOKENS = 1024
FILES = ("loong.jsonl", "data/loong.jsonl")
SOURCE = "github.com/MozerWang/Loong"
DOMAINS = ("financial", "legal", "paper")
LANGUAGES = ("en", "zh")
LEVELS = {1: "spotlight", 2: "comparison", 3: "clustering", 4: "chain"}
CHAIN = 4


@dataclass(frozen=True, slots=True)
class Loong:
    questions: Path
    documents: Path
    domains: tuple[str, ...]
    languages: tuple[str, ...]
    sets: tuple[int, ...]
    name: str = "loong"
    intensity: Intensity = "high"

    def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
        """In the file's order, the documents of each in random order where Loong shuffles them."""
        reader = DocumentReader(self.documents)
        for where, record in read_jsonl(self.questions):
            kind, level = text_field(record, "type", where), record.get("level")
            chosen = kind in self.domains and record.get("language") in self.languages
            if not chosen or record.get("set") not in self.sets:
                continue
            names, answer = record.get("doc"), record.get("answer")
            if (
                not isinstance(level, int)
                or level not in LEVELS
                or not isinstance(names, list)
                or not isinstance(answer, str | list | dict)
            ):
                raise ValueError(
                    f"{where}: needs a level of 1 to 4, a list doc, and an answer that is text or JSON"
                )
            contents = [reader.read(kind, level, str(name), i, where) for i, name in enumerate(names)]
            identity = text_field(record, "id", where)
            if record.get("shuffle_doc", True):
                Random(f"loong {seed} {identity}").shuffle(contents)
            prompt = text_field(record, "prompt_template", where)
            for key in ("question", "instruction"):
                prompt = prompt.replace(f"{{{key}}}", text_field(record, key, where))
            prompt = prompt.replace("{docs}", "".join(contents))
            gold = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
            facts = {"domain": kind, "level": LEVELS[level], "set": record["set"]}
            yield Sample(identity, prompt, gold, MAX_TOKENS, facts)

    def score(self, sample: Sample, text: str) -> dict[str, float]:
        return score_answer(sample.answer, text)


class DocumentReader:
    """The documents of a folder, as Loong puts them into a prompt: each with its title above it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._legal: dict[str, Any] | None = None
        self._names: list[str] | None = None

    def read(self, kind: str, level: int, name: str, index: int, where: str) -> str:
        """The document `name`, the index-th of its question.

        Raises: ValueError when it is missing.
        """
        if kind == "legal":
            return f"《判决文书{index + 1}》\n{self._judgement(name, where)}\n\n"
        if kind == "financial":
            path = self._report(name if level == CHAIN else f"2024-{name}", where)
            return f"《{path.stem.split('-')[-1]}》\n{read_text(path)}\n\n"
        path = self.folder / kind / name
        if Path(name).name != name or not path.is_file():
            raise ValueError(f"{where}: {path} is missing; get Loong's documents from {SOURCE}")
        content = read_text(path)
        return f"{content.partition(chr(10))[0].strip('#').strip()}\n{content}\n\n"

    def _judgement(self, name: str, where: str) -> str:
        path = self.folder / "legal" / "legal.json"
        if self._legal is None:
            self._legal = parse_json(read_text(path), str(path))
        record = self._legal.get(name) if isinstance(self._legal, dict) else None
        if not isinstance(record, dict):
            raise ValueError(f"{where}: {path} has no {name!r}; get Loong's documents from {SOURCE}")
        # With the result also where a question asks for it: Loong's own condition for leaving it out never
        # holds.
        return text_field(record, "content", str(path)) + text_field(record, "result", str(path))

    def _report(self, part: str, where: str) -> Path:
        folder = self.folder / "financial"
        if self._names is None:
            self._names = sorted(path.name for path in folder.glob("*.txt"))
        for name in self._names:
            if part in name.removesuffix(".txt"):
                return folder / name
        raise ValueError(f"{where}: {folder} has no report {part!r}; get Loong's documents from {SOURCE}")


def _open(options: Mapping[str, Any], data_dir: Path | None) -> Loong:
    questions = find_file(data_dir, FILES, "loong", SOURCE)
    places = [questions.parent / "doc", questions.parent]
    for folder in places:
        if any((folder / domain).is_dir() for domain in options["domains"]):
            return Loong(questions, folder, options["domains"], options["languages"], options["sets"])
    raise ValueError(
        f"{places[0]} holds no folder of {', '.join(options['domains'])}: get Loong's documents from"
        f" {SOURCE}, and unpack them there"
    )


ENTRY = TaskEntry(
    "loong",
    "Loong: questions over several documents (needs its documents; scored without its judge)",
    "high",
    (
        Option("domains", "words", "paper,financial,legal", "kinds of documents", choices=DOMAINS),
        Option("languages", "words", "en", "en, zh or both", choices=LANGUAGES),
        Option("sets", "ints", "1,2,3,4", "lengths: 1 is 10-50k tokens, 2 50-100k, 3 100-200k, 4 more", 1, 4),
    ),
    _open,
    "loong.jsonl and doc/ with paper/, financial/, legal/",
)
