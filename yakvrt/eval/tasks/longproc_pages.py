"""LongProc's html_to_tsv data: web pages, what to extract, the gold tables.

Source: github.com/princeton-pli/LongProc.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from yakvrt.eval.tasks.data_files import find_file, parse_json, read_text, text_field

SOURCE = "github.com/princeton-pli/LongProc, its data/html_to_tsv"
SIZES = ("0.5k", "2k", "8k")
FIELD = re.compile(r"\{\{|\}\}|\{(\w*)\}")
TEMPLATE = "USER_PROMPT"


@dataclass(frozen=True, slots=True)
class Page:
    """A page and its table; `gold` is TSV with a header line, `filtering` says which rows, mostly empty."""

    id: str
    topic: str
    description: str
    header: str
    filtering: str
    gold: str
    path: Path

    def html(self) -> str:
        """The page's source.

        Raises: ValueError when it cannot be read.
        """
        return read_text(self.path)


def read_pages(data_dir: Path | None, size: str, task: str) -> list[Page]:
    """All pages of a size.

    Raises: ValueError.
    """
    path = pages_file(data_dir, size, task)
    records = parse_json(read_text(path), str(path))
    if not isinstance(records, list):
        raise ValueError(f"{path} is no JSON list; get it anew from {SOURCE}")
    folder = path.parent.resolve()
    pages = []
    for index, record in enumerate(records):
        where = f"{path}, entry {index + 1}"
        if not isinstance(record, dict):
            raise ValueError(f"{where}: an object was expected, not {type(record).__name__}")
        html = (folder / text_field(record, "html_path", where)).resolve()
        if not html.is_relative_to(folder):
            raise ValueError(f"{where}: the html_path leaves the folder of the file; it must lie below it")
        if not html.is_file():
            raise ValueError(f"{where}: {html} is missing; get the pages too, from {SOURCE}")
        pages.append(
            Page(
                id=text_field(record, "task_id", where),
                topic=text_field(record, "task_topic", where),
                description=text_field(record, "task_description", where),
                header=text_field(record, "tsv_header", where),
                filtering=text_field(record, "filtering_instruction", where),
                gold=text_field(record, "gt", where),
                path=html,
            )
        )
    return pages


def pages_file(data_dir: Path | None, size: str, task: str) -> Path:
    name = f"html_to_tsv_{size}.json"
    return find_file(data_dir, (name, f"html_to_tsv/{name}"), task, SOURCE)


def read_template(path: Path) -> str:
    """The prompt's text of prompts.yaml, which is its only value: a literal block.

    Raises: ValueError.
    """
    lines = read_text(path).split("\n")
    starts = [i for i, line in enumerate(lines) if re.fullmatch(rf"{TEMPLATE}: *\|-? *", line)]
    if len(starts) != 1:
        raise ValueError(f"{path} has no block {TEMPLATE}: |-; get it anew from {SOURCE}")
    block = []
    for line in lines[starts[0] + 1 :]:
        if line.strip() and not line.startswith(" "):
            break
        block.append(line)
    indent = min((len(line) - len(line.lstrip()) for line in block if line.strip()), default=0)
    return "\n".join(line[indent:] for line in block).rstrip("\n")


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with {name} replaced by its value, and doubled braces by single ones.

    Raises: ValueError for a name that has no value.
    """

    def replace(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        if match[1] not in values:
            raise ValueError(
                f"the prompt's template asks for {match[0]}, which is unknown; get it anew from {SOURCE}"
            )
        return values[match[1]]

    return FIELD.sub(replace, template)
