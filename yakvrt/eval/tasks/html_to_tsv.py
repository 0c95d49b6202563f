"""LongProc's html_to_tsv: the table of a web page as TSV, in three sizes of the answer.

Source: arXiv 2501.05414, github.com/princeton-pli/LongProc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from yakvrt.eval.sample import Intensity, Sample
from yakvrt.eval.tasks.data_files import find_file
from yakvrt.eval.tasks.entry import TaskEntry
from yakvrt.eval.tasks.longproc_pages import (
    SIZES,
    SOURCE,
    Page,
    filled,
    pages_file,
    read_pages,
    read_template,
)
from yakvrt.eval.tasks.tsv_score import score_table, table_text

# LongProc's limits on what is generated.
MAX_TOKENS = {"0.5k": 1024, "2k": 3072, "8k": 9216}


@dataclass(frozen=True, slots=True)
class HtmlToTsv:
    size: str
    pages: list[Page]
    template: str
    intensity: Intensity = "high"

    @property
    def name(self) -> str:
        return f"html_to_tsv_{self.size}"

    def samples(self, seed: int, count: Callable[[str], int]) -> Iterator[Sample]:
        for page in self.pages:
            values = {
                "html_str": page.html(),
                "task_topic": page.topic,
                "task_description": page.description,
                "filtering_instruction": page.filtering,
                "tsv_header": page.header,
            }
            gold = page.gold.strip()
            prompt = filled(self.template, values)
            facts = {"size": self.size, "topic": page.topic, "rows": gold.count("\n")}
            yield Sample(page.id, prompt, f"```tsv\n{gold}\n```", MAX_TOKENS[self.size], facts)

    def score(self, sample: Sample, text: str) -> dict[str, float]:
        return score_table(table_text(sample.answer), text)


def _open(size: str, options: Mapping[str, Any], data_dir: Path | None) -> HtmlToTsv:
    task = f"html_to_tsv_{size}"
    pages = read_pages(data_dir, size, task)
    prompts = find_file(pages_file(data_dir, size, task).parent, ("prompts.yaml",), task, SOURCE)
    return HtmlToTsv(size, pages, read_template(prompts))


ENTRIES = tuple(
    TaskEntry(
        f"html_to_tsv_{size}",
        f"LongProc: the table of a web page as TSV, about {size} tokens of it",
        "high",
        (),
        partial(_open, size),
        f"html_to_tsv_{size}.json, prompts.yaml, webpage/",
    )
    for size in SIZES
)
