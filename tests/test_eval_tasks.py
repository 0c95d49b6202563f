"""Evaluation tasks on small data made by hand: gold answers score 100, and samples repeat."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from eval_data import ROWS, count, samples, write_data

from yakvrt.eval.tasks import TASKS
from yakvrt.eval.tasks.fill import fill
from yakvrt.eval.tasks.interleave import interleave
from yakvrt.eval.tasks.longproc_pages import filled, read_template


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return tmp_path


# What makes each task small: options, and the number of samples then.
SMALL: dict[str, tuple[dict[str, str], int]] = {
    "text2json": ({}, 2),
    "text2json-longproc": ({"shortest": "10", "longest": "1000"}, 3),
    "text2json-synth": ({"lengths": "2k", "entries": "7", "repeats": "4"}, 4),
    "html_to_tsv_0.5k": ({}, 1),
    "html_to_tsv_2k": ({}, 1),
    "html_to_tsv_8k": ({}, 1),
    "multineedle": ({"lengths": "300,1k", "needles": "3", "repeats": "2"}, 4),
    "niah": ({"lengths": "300", "depths": "0,50,100"}, 3),
    "ruler": ({"lengths": "1k,4k", "repeats": "1"}, 22),
    "loong": ({}, 3),
    "continuation": ({"lengths": "300,500", "answer": "64", "windows": "2"}, 4),
}


@pytest.mark.parametrize("name", TASKS)
def test_samples(name: str, data: Path) -> None:
    """Gold scores 100, an empty answer 0; prompts are long enough and never too long; a seed says all."""
    entry = TASKS[name]
    given, number = SMALL[name]
    task = entry.open(entry.read(given), data)
    made = samples(name, data, given)
    assert len({sample.id for sample in made}) == len(made) == number
    assert made == samples(name, data, given)
    assert task.name == name
    assert task.intensity == entry.intensity
    for sample in made:
        json.dumps(dict(sample.facts))
        if sample.max_tokens:
            assert task.score(sample, sample.answer)["score"] == 100, sample.answer
            assert task.score(sample, "")["score"] == 0
        if "length" in sample.facts:
            tokens = count(sample.prompt) + (sample.max_tokens if name == "ruler" else 0)
            assert sample.facts["length"] * 0.9 < tokens <= sample.facts["length"]
    if "repeats" in given:
        assert made != samples(name, data, given, seed=1)


def test_made_up_samples_are_the_same_everywhere() -> None:
    """On any platform, in any process: other values here mean that published scores no longer compare."""
    made = samples("text2json-synth", None, {"lengths": "4k", "repeats": "4"})
    digest = hashlib.sha256("".join(sample.prompt + sample.answer for sample in made).encode()).hexdigest()
    assert digest[:16] == "933d9522097f653b"


def test_made_up_entries_are_told(data: Path) -> None:
    """Every value of the gold stands in the prompt, and the records lie all over it."""
    for sample in samples("text2json-synth", None, {"lengths": "8k", "repeats": "4"}):
        places = []
        for entry in json.loads(sample.answer):
            assert all(value in sample.prompt for value in entry.values())
            places.append(sample.prompt.index(entry["name"]) / len(sample.prompt))
        assert places == sorted(places)
        assert places[0] < 0.3
        assert places[-1] > 0.7


def test_pages_become_entries(data: Path) -> None:
    """The column with a bracket is passed over, quotes are csv's, and what is missing is N/A."""
    sample = samples("text2json-longproc", data, {"shortest": "10"})[0]
    assert json.loads(sample.answer) == [
        {"name": "Bar’s One", "phone": "1", "city": "Oslo"},
        {"name": "Two", "phone": "2", "city": "N/A"},
        {"name": "Three", "phone": '"3"', "city": "Rome"},
    ]
    assert "<p>{tsv_header} One</p>\n" in sample.prompt
    assert '- "city": City (not the state)\n' in sample.prompt
    assert " Only bars." in sample.prompt
    assert sample.facts["domain"] == "organisations"


def test_the_page_is_put_into_longprocs_prompt(data: Path) -> None:
    sample = samples("html_to_tsv_2k", data, {})[0]
    header = ROWS[0]
    topic = "Bars: (1) Name; (2) Phone; (3) Tags; (4) City (not the state);\nOnly bars."
    assert sample.prompt == f"Page:\n<p>{{tsv_header}} One</p>\n\n\n  {topic}\n{{{header}}}"
    assert sample.max_tokens == 3072


def test_needles_lie_at_their_depths(data: Path) -> None:
    for sample in samples("multineedle", data, {"lengths": "1k", "needles": "3", "repeats": "2"}):
        assert sample.facts["depths"] == [0, 50, 100]
        document = sample.prompt.split("<Document>\n")[1].split("\n</Document>")[0]
        places = [document.index(keyword) / len(document) for keyword in sample.facts["keywords"]]
        assert places == pytest.approx([0, 0.5, 1], abs=0.05)
    task = TASKS["multineedle"].open(TASKS["multineedle"].read({"needles": "3"}), data)
    scores = task.score(sample, " ".join(sample.facts["keywords"][1:]))
    assert scores == {"score": pytest.approx(200 / 3), "depth_0": 0, "depth_50": 100, "depth_100": 100}


def test_ruler_asks_for_what_is_there(data: Path) -> None:
    for sample in samples("ruler", data, {"lengths": "2k", "repeats": "2"}):
        expected = sample.facts["expected"]
        assert all(text in sample.prompt for text in expected)
        assert len(expected) == {
            "vt": 5,
            "cwe": 10,
            "fwe": 3,
            "niah_multivalue": 4,
            "niah_multiquery": 4,
        }.get(sample.facts["task"], 1)
        if sample.facts["task"] in {"cwe", "fwe"}:
            words = re.sub(r"\d+\. ", "", sample.prompt.rsplit("\nQuestion", 1)[0]).split()
            counts = sorted({word: words.count(word) for word in words}.values())
            wanted = [words.count(word) for word in expected]
            assert min(wanted) > 1
            assert set(wanted) <= set(counts[-len(expected) - 8 :])
    assert TASKS["ruler"].open(TASKS["ruler"].read({"tasks": "cwe,fwe"}), None).intensity == "high"


def test_loong_puts_documents_into_the_prompt(data: Path) -> None:
    made = {sample.id: sample.prompt for sample in samples("loong", data, {"languages": "en,zh"})}
    one, two = "One\n# One\nfirst\n\n", "Two\n# Two\nsecond\n\n"
    assert made["p"] in {f"{first}{second}\nSay it.\nWhich?" for first, second in ((one, two), (two, one))}
    assert made["f"].startswith("《ACME》\nnew\n\n")
    assert made["l"].startswith("《判决文书1》\ncasewon\n\n")


def test_a_text_is_continued(data: Path) -> None:
    first, second, *_ = samples("continuation", data, {"lengths": "300,500", "answer": "64", "windows": "2"})
    text = (data / "story.txt").read_text()
    assert text.startswith(first.prompt + first.answer + second.prompt + second.answer)
    assert first.max_tokens == 0
    assert (
        TASKS["continuation"].open({"lengths": (300,), "answer": 64, "windows": 1}, data).score(first, "")
        == {}
    )


def test_short_answers_of_a_continuation(data: Path) -> None:
    given = {"lengths": "300", "answer": "32", "windows": "2"}
    assert [round(count(one.answer), -1) for one in samples("continuation", data, given)] == [30, 30]
    (data / "story.txt").write_text("a " * 300 + "b" * 9000)
    with pytest.raises(ValueError, match="in 301 words, which are not cut; a window takes 300 "):
        samples("continuation", data, given)


@pytest.mark.parametrize("limit", [40, 41, 1000, 5000])
def test_fill(limit: int) -> None:
    """Close to the limit and never above, with few counts, for pieces of very different sizes."""
    pieces = ["x " * (1 + (i * i) % 17) for i in range(3000)]
    counts = []

    def counted(text: str) -> int:
        counts.append(count(text))
        return counts[-1]

    text, n = fill(lambda n: "".join(pieces[:n]), len(pieces), limit, counted, "a text")
    assert text == "".join(pieces[:n])
    assert limit - max(8, 17, limit / 400) <= count(text) <= limit
    assert len(counts) <= 12
    whole, n = fill(lambda n: "".join(pieces[:n]), 10, limit * 100, counted, "a text")
    assert n == 10
    assert whole == "".join(pieces[:10])


def test_interleave() -> None:
    assert "".join(interleave("abcd", "XYZ", [0, 0.5, 1])) == "XabYcdZ"
    assert interleave("", "X", [0.5]) == ["X"]


def test_template(tmp_path: Path) -> None:
    assert filled("{{a}} {b}{b.c} {0}", {"b": "{a}", "0": "x"}) == "{a} {a}{b.c} x"
    path = tmp_path / "prompts.yaml"
    path.write_text("USER_PROMPT: |-\n    one\n\n      two\n\n")
    assert read_template(path) == "one\n\n  two"
