"""A look-alike of Text2JSON made of LongProc's web pages; not the paper's own data.

Pages of a length like the paper's (10.0k to 63.5k tokens) whose table has 3 to 20 rows and a column of
different names; the keys are the name and two more columns. Texts with square brackets are left out, since
the scorer counts brackets.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yakvrt.eval.sample import Intensity, Sample
from yakvrt.eval.tasks.entry import TaskEntry
from yakvrt.eval.tasks.longproc_pages import SIZES, Page, read_pages
from yakvrt.eval.tasks.options import Option
from yakvrt.eval.tasks.text2json import MAX_TOKENS, score_text2json
from yakvrt.eval.tasks.text2json_prompt import write_entries, write_prompt
from yakvrt.eval.tasks.text2json_score import fold

MIN_ROWS, MAX_ROWS = 3, 20
MAX_CELL_CHARS = 300
MISSING = "N/A"
# As LongProc asks for its tables.
RULES = (
    'Write "N/A" for what is not there, a space for a line break, commas between the items of a list, '
    "and leave out HTML tags. "
)
DESCRIPTION = re.compile(r"\s*\(\d+\)\s*")
# Words of a page's topic that tell its domain; the paper has four.
DOMAINS = {
    "people": "attorney laywer lawyer doctor people player tennis",
    "works": "film movie manga book novel song album game show article news press software",
    "products": "product shopping ebay phone smartphone car container patent domain stock mortagage tax",
    "organisations": "bar school garage hosting company organization university property meeting",
}


@dataclass(frozen=True, slots=True)
class Text2JsonLongProc:
    pages: list[Page]
    shortest: int
    longest: int
    name: str = "text2json-longproc"
    intensity: Intensity = "high"

    def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
        """In the order of the files; which pages fit depends on the tokenizer."""
        for page in self.pages:
            table = convert(page)
            if table is None:
                continue
            entries, keys = table
            answer = write_entries(entries)
            task = f"Extract the items listed on the web page above.{_sentence(page.filtering)}"
            page_text = f"Below is the source of a web page. Its topic: {page.topic}.\n\n{page.html()}"
            prompt = write_prompt(page_text, task, keys, RULES)
            if not self.shortest <= count(prompt) <= self.longest or count(answer) > MAX_TOKENS:
                continue
            facts = {"entries": len(entries), "topic": page.topic, "domain": domain(page.topic)}
            yield Sample(f"text2json-longproc-{page.id}", prompt, answer, MAX_TOKENS, facts)

    def score(self, sample: Sample, text: str) -> dict[str, float]:
        return score_text2json(sample, text)


def convert(page: Page) -> tuple[list[dict[str, str]], dict[str, str]] | None:
    """The entries of a page's table and the description of their three keys; None for one that does not
    suit."""
    try:
        rows = list(csv.reader(page.gold.strip().split("\n"), delimiter="\t"))
    except csv.Error:
        return None
    header, rows = rows[0], [[cell.strip() or MISSING for cell in row] for row in rows[1:]]
    if not MIN_ROWS <= len(rows) <= MAX_ROWS or any(len(row) != len(header) for row in rows):
        return None
    columns = list(zip(*rows, strict=True))
    usable = [i for i, column in enumerate(columns) if _usable(column)]
    names = [i for i in usable if _names(columns[i])]
    if not names or len(usable) < 3:
        return None
    chosen = [names[0], *[i for i in usable if i != names[0]][:2]]
    keys = ["name", *(_key(header[i]) for i in chosen[1:])]
    if len(set(keys)) < len(keys):
        return None
    described = [part.strip(" ;.") for part in DESCRIPTION.split(page.description)[1:]]
    if len(described) != len(header):
        described = header
    entries = [{key: row[i] for key, i in zip(keys, chosen, strict=True)} for row in rows]
    return entries, {key: described[i] for key, i in zip(keys, chosen, strict=True)}


def _usable(column: Sequence[str]) -> bool:
    """Free of brackets and of long texts, and more than half of its cells say something."""
    short = all(len(cell) <= MAX_CELL_CHARS and not set("[]") & set(cell) for cell in column)
    return short and 2 * sum(cell != MISSING for cell in column) > len(column)


def _names(column: Sequence[str]) -> bool:
    return len({fold(cell) for cell in column}) == len(column) and MISSING not in column


def _key(header: str) -> str:
    key = re.sub(r"\W+", "_", header.strip().lower()).strip("_")
    return "other_name" if key == "name" else key


def _sentence(filtering: str) -> str:
    return f" {filtering.strip()}" if filtering.strip() else ""


def domain(topic: str) -> str:
    """One of DOMAINS, or "other"."""
    found = set(re.findall(r"\w+", topic.lower()))
    for name, words in DOMAINS.items():
        if any(word in found or f"{word}s" in found for word in words.split()):
            return name
    return "other"


def _open(options: Mapping[str, Any], data_dir: Path | None) -> Text2JsonLongProc:
    pages = [page for size in options["sizes"] for page in read_pages(data_dir, size, "text2json-longproc")]
    shortest, longest = options["shortest"], options["longest"]
    if shortest > longest:
        raise ValueError(f"shortest={shortest} is more than longest={longest}; swap them")
    return Text2JsonLongProc(pages, shortest, longest)


ENTRY = TaskEntry(
    "text2json-longproc",
    "look-alike of Text2JSON: LongProc's web pages, their tables as JSON",
    "high",
    (
        Option("shortest", "int", "10000", "tokens of the shortest prompt taken", 0, 1 << 21),
        Option("longest", "int", "63500", "tokens of the longest prompt taken", 1, 1 << 21),
        Option("sizes", "words", ",".join(SIZES), "LongProc's files to take", choices=SIZES),
    ),
    _open,
    "html_to_tsv_0.5k.json, _2k, _8k, webpage/",
)
