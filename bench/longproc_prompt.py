"""A sample of LongProc's html_to_tsv task as a prompt and its answer, for bench_recall.py --gold.

    python bench/longproc_prompt.py DIRECTORY W308_0.5k_1 NAME

DIRECTORY holds html_to_tsv_*.json, prompts.yaml and webpage/; writes NAME.txt and NAME.gold.txt.
Source: LongProc, github.com/princeton-nlp/LongProc.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path


def sample(directory: Path, task_id: str) -> dict[str, str]:
    """Raises: ValueError for a task that is not there."""
    for file in sorted(directory.glob("html_to_tsv_*.json")):
        for found in json.loads(file.read_text(encoding="utf-8")):
            if found["task_id"] == task_id:
                held: dict[str, str] = found
                return held
    raise ValueError(f"{directory} has no sample {task_id!r}; task ids look like W308_0.5k_1")


def prompt_and_answer(directory: Path, task_id: str) -> tuple[str, str]:
    found = sample(directory, task_id)
    _, _, template = (directory / "prompts.yaml").read_text(encoding="utf-8").partition("USER_PROMPT: |-\n")
    html = (directory / found["html_path"]).read_text(encoding="utf-8")
    prompt = textwrap.dedent(template).format(html_str=html, **found)
    return prompt, f"```tsv\n{found['gt'].strip()}\n```"


def main() -> None:
    parser = argparse.ArgumentParser(description="A LongProc html_to_tsv sample: its prompt and answer.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("task_id")
    parser.add_argument("name", type=Path, metavar="NAME", help="writes NAME.txt and NAME.gold.txt")
    args = parser.parse_args()
    try:
        texts = prompt_and_answer(args.directory, args.task_id)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    for ending, text in zip((".txt", ".gold.txt"), texts, strict=True):
        args.name.with_name(args.name.name + ending).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
