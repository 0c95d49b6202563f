"""Data for every evaluation task, small and made by hand, as users would have it in one folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from yakvrt.eval.sample import Sample
from yakvrt.eval.tasks import TASKS

PROMPTS = """# of LongProc
USER_PROMPT: |-
  Page:
  {html_str}

    {task_topic}: {task_description}{filtering_instruction}
  {{{tsv_header}}}
OTHER: x
"""
ROWS = ["Name\tPhone\tTags\tCity", "Bar’s One\t1\t[a]\tOslo", "Two\t2\tb\tN/A", 'Three\t"""3"""\t\tRome']
NEEDLES = [
    {
        "needle": f"Hidden on {place} is the {thing}.",
        "retrieval_question": f"What is on {place}? Please answer in the format 'On {place} is________.'",
        "gold_standard_answer": f"On {place} is the {thing}.",
        "arg1": place,
        "arg2": thing,
        "language": language,
    }
    for place, thing, language in (
        ("Skye", "Salt Key", "English"),
        ("Mull", "Red Crown", "English"),
        ("Skye", "Red Crown", "English"),
        ("Jura", "Old Bell", "English"),
        ("Jura", "Old Bell", "Chinese"),
    )
]


def count(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def samples(name: str, data: Path | None, given: Mapping[str, str], seed: int = 0) -> list[Sample]:
    entry = TASKS[name]
    return list(entry.open(entry.read(given), data).samples(seed, count))


def write_lines(path: Path, *records: object) -> None:
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8"
    )


def write_data(folder: Path) -> None:
    """All of it; the package lists of RULER's words go into folder/packages."""
    gold = [{"name": f"n{i}", "k": "x", "l": "y"} for i in range(3)]
    write_lines(
        folder / "text2json.jsonl",
        {"problem": "Find them.", "answer": json.dumps(gold)},
        {"problem": "Twice.", "answer": json.dumps([gold[0] | {"name": "it’s"}, gold[1] | {"name": "it's"}])},
        {"problem": "Again.", "answer": json.dumps(gold[:1])},
    )
    (folder / "webpage").mkdir()
    (folder / "webpage" / "a.html").write_bytes(b"<p>{tsv_header} One</p>\r\n")
    page = {
        "task_id": "W1",
        "html_path": "webpage/a.html",
        "task_topic": "Bars",
        "task_description": "(1) Name; (2) Phone; (3) Tags; (4) City (not the state);",
        "tsv_header": "\t".join(ROWS[0].split("\t")),
        "filtering_instruction": "\nOnly bars.",
        "gt": "\n".join(ROWS) + "\n",
    }
    for size in ("0.5k", "2k", "8k"):
        (folder / f"html_to_tsv_{size}.json").write_text(json.dumps([page | {"task_id": f"W1_{size}"}]))
    (folder / "prompts.yaml").write_text(PROMPTS)
    write_lines(folder / "needles.jsonl", *NEEDLES)
    write_lines(folder / "PaulGrahamEssays.jsonl", {"text": "One short essay. Not long! " * 40})
    (folder / "story.txt").write_text("It was a dark night, and the rain fell.\n\n" * 200)
    write_loong(folder)
    assets = folder / "packages" / "wonderwords" / "assets"
    assets.mkdir(parents=True)
    for kind in ("noun", "adjective", "verb"):
        (assets / f"{kind}list.txt").write_text("\n".join(f"{kind}{i}" for i in range(400)))
    for folder in (assets, assets.parent):
        (folder / "__init__.py").touch()


def write_loong(folder: Path) -> None:
    question = {
        "set": 1,
        "language": "en",
        "question": "Which?",
        "instruction": "Say it.",
        "prompt_template": "{docs}\n{instruction}\n{question}",
    }
    papers = {"type": "paper", "level": 4, "doc": ["1.md", "2.md"], "id": "p", "answer": ["# One", "# Two"]}
    reports = {"type": "financial", "level": 2, "doc": ["ACME"], "id": "f", "answer": "ACME"}
    cases = {"type": "legal", "level": 3, "doc": ["x"], "id": "l", "answer": {"a": ["《判决文书1》"]}}
    write_lines(folder / "loong.jsonl", *({**question, **more} for more in (papers, reports, cases)))
    texts = {
        "paper/1.md": "# One\nfirst",
        "paper/2.md": "# Two\nsecond",
        "financial/2023-ACME.txt": "old",
        "financial/2024-ACME.txt": "new",
        "legal/legal.json": json.dumps({"x": {"content": "case", "result": "won"}}),
    }
    for name, text in texts.items():
        path = folder / "doc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
