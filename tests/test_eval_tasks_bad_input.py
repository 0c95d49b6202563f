"""Missing data, malformed lines and absurd options of evaluation tasks: a sentence each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from eval_data import samples, write_data

from yakvrt.eval.tasks import TASKS


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return tmp_path


BAD_OPTIONS = [
    ("niah", {"length": "4k"}, "the task niah has no option 'length'; it has lengths, depths, repeats"),
    ("text2json", {"x": "1"}, "the task text2json has no option 'x'; it has none"),
    ("niah", {"lengths": "4k,"}, "lengths: '' is no number of tokens"),
    ("niah", {"lengths": "-4"}, "lengths: '-4' is no number of tokens"),
    ("niah", {"lengths": "8"}, "lengths: 8 tokens are out of range"),
    ("niah", {"lengths": "999999999m"}, "lengths: 999999999m tokens are out of range"),
    ("niah", {"lengths": ",".join(["4k"] * 101)}, "lengths has 101 values; give at most 100"),
    ("niah", {"depths": "0,101"}, "depths: 101 is out of range; give 0 to 100"),
    ("niah", {"repeats": "many"}, "repeats: 'many' is no whole number; the default is 1"),
    ("niah", {"repeats": "0"}, "repeats: 0 is out of range; give 1 to 10000"),
    ("text2json-synth", {"entries": "21"}, "entries: 21 is out of range; give 1 to 20"),
    ("ruler", {"tasks": "vt,qa_1"}, "tasks='qa_1' is unknown; choose of niah_single_1, "),
    ("text2json-longproc", {"shortest": "9", "longest": "8"}, "shortest=9 is more than longest=8; swap them"),
    ("text2json-synth", {"lengths": "256"}, "more than the length 256; give a longer one"),
    ("multineedle", {"needles": "4"}, "has only 3 needles that differ in subject and answer, not 4"),
    ("ruler", {"lengths": "256", "tasks": "cwe"}, "cwe, its 120 tokens of answer kept free, takes "),
    ("ruler", {"lengths": "64k", "tasks": "cwe"}, "tokens, not for 65536; give a shorter length"),
    (
        "continuation",
        {"lengths": "100k"},
        "words, which are not cut; a window takes 102400 + 512 tokens: give smaller",
    ),
    ("loong", {"sets": "5"}, "sets: 5 is out of range; give 1 to 4"),
]


@pytest.mark.parametrize(("name", "given", "sentence"), BAD_OPTIONS)
def test_bad_options(name: str, given: dict[str, str], sentence: str, data: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        samples(name, data, given)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "text2json-synth"])
def test_missing_data(name: str, data: Path, tmp_path: Path) -> None:
    """One sentence each for no folder, a folder without the data, and no folder at all."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="--data"):
        samples(name, None, {})
    for folder in ("empty", "nowhere"):
        with pytest.raises(ValueError, match=f"--data .*{folder} (holds|is) no "):
            samples(name, data / folder, {})


def test_missing_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yakvrt.eval.tasks.word_lists.PACKAGE", "no_such_words")
    with pytest.raises(ValueError, match=re.escape("pip install 'yakvrt[eval]'")):
        samples("ruler", None, {"tasks": "niah_single_1"})
    assert samples("ruler", None, {"tasks": "fwe", "lengths": "1k", "repeats": "1"})


def replace(name: str, before: str, after: str) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        path = data / name
        text = path.read_text(encoding="utf-8")
        assert before in text
        path.write_text(text.replace(before, after), encoding="utf-8")

    return change


BAD_DATA = [
    ("text2json", replace("text2json.jsonl", '"Again."', "Again."), "text2json.jsonl:3: not JSON"),
    (
        "text2json",
        replace("text2json.jsonl", '{"problem": "Again."', '7\n{"problem": "Again."'),
        ":3: a JSON object",
    ),
    (
        "text2json",
        replace("text2json.jsonl", "problem", "prompt"),
        "jsonl:1: has no 'problem'; it must be a text",
    ),
    ("text2json", replace("text2json.jsonl", '"Again."', "null"), "jsonl:3: has a NoneType as 'problem'"),
    ("text2json", replace("text2json.jsonl", r"\"k\": \"x\", ", ""), "must hold a name and two more texts"),
    ("text2json", replace("text2json.jsonl", '"[', '"{['), "jsonl:1: answer: not JSON"),
    ("html_to_tsv_2k", replace("html_to_tsv_2k.json", "webpage/", "../"), "leaves the folder"),
    ("html_to_tsv_2k", replace("html_to_tsv_2k.json", "a.html", "b.html"), "b.html is missing"),
    ("html_to_tsv_2k", replace("html_to_tsv_2k.json", "gt", "gold"), "entry 1: has no 'gt'"),
    ("html_to_tsv_2k", replace("prompts.yaml", "USER_PROMPT", "PROMPT"), "has no block USER_PROMPT"),
    ("html_to_tsv_2k", replace("prompts.yaml", "{html_str}", "{html}"), "asks for {html}, which is unknown"),
    (
        "niah",
        replace("needles.jsonl", "retrieval_question", "q"),
        "needles.jsonl:1: has no 'retrieval_question'",
    ),
    (
        "niah",
        replace("needles.jsonl", '"arg2": "Salt', '"arg2": "Sugar'),
        "jsonl:1: the needle must hold its arg2",
    ),
    ("niah", replace("needles.jsonl", "English", "Dutch"), "has no English needles"),
    ("niah", replace("PaulGrahamEssays.jsonl", '"text"', '"texts"'), "jsonl:1: has no 'text'"),
    ("loong", replace("loong.jsonl", "2.md", "3.md"), "loong.jsonl:1: "),
    ("loong", replace("loong.jsonl", "1.md", "../paper/1.md"), "loong.jsonl:1: "),
    ("loong", replace("loong.jsonl", '["ACME"]', '["B"]'), "has no report '2024-B'"),
    ("loong", replace("loong.jsonl", '"level": 4', '"level": []'), "loong.jsonl:1: needs a level of 1 to 4"),
    ("loong", replace("loong.jsonl", '"level": 4', '"level": 5'), "loong.jsonl:1: needs a level of 1 to 4"),
]


@pytest.mark.parametrize(("name", "damage", "sentence"), BAD_DATA)
def test_bad_data(name: str, damage: Callable[[Path], None], sentence: str, data: Path) -> None:
    damage(data)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        samples(name, data, {})


def test_files_that_are_no_text(data: Path) -> None:
    (data / "story.txt").write_bytes(b"caf\xe9 " * 9)
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        samples("continuation", data, {})
    deep = "[" * 200_000
    (data / "text2json.jsonl").write_text(json.dumps({"problem": "p", "answer": deep}))
    with pytest.raises(ValueError, match=r"jsonl:1: answer: (not JSON|JSON nested)"):
        samples("text2json", data, {})
    (data / "text2json.jsonl").write_text('{"problem": ' + "9" * 5000 + "}")
    with pytest.raises(ValueError, match=r"jsonl:1: JSON nested too deeply or with too long a number"):
        samples("text2json", data, {})


def test_a_table_that_csv_cannot_read_is_passed_over(data: Path) -> None:
    given = {"shortest": "10", "sizes": "0.5k,2k"}
    assert len(samples("text2json-longproc", data, given)) == 2
    replace("html_to_tsv_2k.json", "Oslo", "Os\\rlo")(data)
    assert len(samples("text2json-longproc", data, given)) == 1
