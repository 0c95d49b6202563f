"""Prompts with gold answers that bench/ makes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "bench"))

import longproc_prompt
import record_list


def test_a_record_list_has_the_answer_in_it() -> None:
    prompt, answer = record_list.make(60, 4)
    assert (prompt, answer) == record_list.make(60, 4) != record_list.make(60, 5)
    lines = answer.splitlines()
    assert len(lines) > 2
    city = prompt.partition("every order from ")[2].partition(",")[0]
    for line in lines[1:]:
        name, amount = line.split("\t")
        (record,) = [line for line in prompt.splitlines() if name in line]
        assert record.endswith(f"| {amount}")
        assert f"| {city} |" in record
    assert prompt.count(f"| {city} |") == len(lines) - 1


def test_a_longproc_sample_fills_the_template(tmp_path: Path) -> None:
    template = "USER_PROMPT: |-\n  Page about {task_topic}:\n  {html_str}\n\n  As {{tsv}}: {tsv_header}"
    (tmp_path / "prompts.yaml").write_text(template)
    (tmp_path / "page.html").write_text("<b>\n  {x}</b>")
    found = {"task_id": "W1_2k_1", "html_path": "page.html", "task_topic": "tea", "tsv_header": "a\tb"}
    (tmp_path / "html_to_tsv_2k.json").write_text(json.dumps([{**found, "gt": "a\tb\n1\t2\n"}]))
    prompt, answer = longproc_prompt.prompt_and_answer(tmp_path, "W1_2k_1")
    assert prompt == "Page about tea:\n<b>\n  {x}</b>\n\nAs {tsv}: a\tb"
    assert answer == "```tsv\na\tb\n1\t2\n```"
    with pytest.raises(ValueError, match="W9_2k_1"):
        longproc_prompt.prompt_and_answer(tmp_path, "W9_2k_1")
