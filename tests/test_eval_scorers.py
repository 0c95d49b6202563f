"""The scorers of evaluation tasks on cases worked out by hand, with the odd rules of the published ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from yakvrt.eval.tasks.loong_score import score_answer
from yakvrt.eval.tasks.string_match import share_held
from yakvrt.eval.tasks.text2json_score import score_entries
from yakvrt.eval.tasks.tsv_score import normalised, score_table

GOLD = [
    {"name": "Ada", "year": "1815", "city": "London"},
    {"name": "Grace O'Hara", "year": "1906", "city": "New York"},
]
TABLE = "name\tprice\nThe Lamp\t€ 10.50\nDesk\tN/A\nDesk\tN/A\nChair\t7"


def as_text(*entries: Any) -> str:
    return json.dumps(list(entries), ensure_ascii=False)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        pytest.param(as_text(*GOLD), 100, id="gold"),
        pytest.param(as_text(*reversed(GOLD)), 100, id="any order"),
        pytest.param(f"Here it is:\n```json\n{as_text(*GOLD)}\n```", 100, id="words around the list"),
        pytest.param(as_text(GOLD[0]), 50, id="one of two"),
        pytest.param(as_text(GOLD[0] | {"year": 1815}, GOLD[1]), 100, id="a whole number is its digits"),
        pytest.param(as_text(GOLD[0] | {"year": 1815.0}, GOLD[1]), 87.5, id="no other number is"),
        pytest.param(as_text(GOLD[0] | {"year": True}, GOLD[1]), 87.5, id="true is no number"),
        pytest.param(as_text(GOLD[0] | {"year": "1816"}, GOLD[1]), 87.5, id="wrong value"),
        pytest.param(as_text(GOLD[0] | {"year": None}, GOLD[1]), 75, id="null counts as missing"),
        pytest.param(as_text({"name": "Ada"}, GOLD[1]), 50, id="both keys missing"),
        pytest.param(as_text(GOLD[0] | {"more": "x"}, GOLD[1]), 100, id="more keys are free"),
        pytest.param(as_text(GOLD[0], GOLD[1] | {"name": "Grace O’Hara"}), 100, id="curly apostrophe"),
        pytest.param(as_text(GOLD[0], GOLD[1] | {"name": "grace o'hara"}), 100 / 3, id="names match exactly"),
        pytest.param(as_text(*GOLD, GOLD[0]), 200 / 3, id="a repeated name is unmatched"),
        pytest.param(as_text(*GOLD, {"name": 7}, {}, "name", 3), 200 / 6, id="entries without a name"),
        pytest.param("[]", 0, id="empty list"),
        pytest.param(as_text(*GOLD) + "[", 0, id="a second bracket"),
        pytest.param(as_text(GOLD[0] | {"year": "[1815"}, GOLD[1]), 0, id="a bracket in a value"),
        pytest.param("]" + as_text(*GOLD)[1:-1] + "[", 0, id="brackets the wrong way round"),
        pytest.param(as_text(*GOLD)[:-2] + "]", 0, id="not JSON"),
        pytest.param("[" + "9" * 5000 + "]", 0, id="a number that Python refuses"),
        pytest.param(json.dumps(GOLD[0]), 0, id="no list"),
        pytest.param("", 0, id="nothing"),
    ],
)
def test_text2json(text: str, score: float) -> None:
    assert score_entries(GOLD, text)["score"] == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "precision", "recall"),
    [
        pytest.param(f"```tsv\n{TABLE}\n```", 100, 100, id="gold"),
        pytest.param(TABLE, 100, 100, id="without a fence"),
        pytest.param(f"```tsv\n{TABLE}", 100, 100, id="an open fence"),
        pytest.param(f"Sure.\n```tsv\n{TABLE}\n```\nAnything else?", 100, 100, id="words around the fence"),
        pytest.param("a\tb\nlamp\t€1050\nchair\t7!", 100, 50, id="other headers, normalised cells"),
        pytest.param(
            "a\tb\nChair\t7\nChair\t7\nChair\t8", 200 / 3, 25, id="rows count as often as they stand"
        ),
        pytest.param("a\tb\nChair\t7\nThat is all", 100, 25, id="a last row of another width is dropped"),
        pytest.param("a\tb\nx\nChair\t7", 50, 25, id="elsewhere it is N/A in all columns"),
        pytest.param("a\tb\n\nChair\t7", 50, 25, id="so is a blank line"),
        pytest.param('a\tb\n"Chair"\t7', 100, 25, id="csv's quotes"),
        pytest.param('a\tb\n"Chair\t7\nDesk\tN/A', 0, 0, id="an open quote takes the rest"),
        pytest.param("a\tb\tc\nChair\t7\tx", 0, 0, id="another number of columns"),
        pytest.param("a\ta\nChair\t7", 0, 0, id="a header twice"),
        pytest.param("a\tb", 0, 0, id="only a header"),
        pytest.param("a\tb\nChair", 0, 0, id="only a short row"),
        pytest.param("a\tb\nCh\rair\t7", 0, 0, id="a carriage return that csv refuses"),
        pytest.param("", 0, 0, id="nothing"),
    ],
)
def test_html_to_tsv(text: str, precision: float, recall: float) -> None:
    scores = score_table(TABLE, text)
    assert scores["precision"] == pytest.approx(precision)
    assert scores["recall"] == pytest.approx(recall)
    f1 = 2 * precision * recall / (precision + recall) if precision else 0
    assert scores["score"] == pytest.approx(f1)


def test_html_to_tsv_normalises_as_longproc() -> None:
    """Punctuation goes first, so that what was joined by it is one word, and no article is found in it."""
    assert normalised(" The  Price: a-b, $1,200.50 (an offer) ") == "priceab120050offer"
    assert normalised("a.b") == "ab"
    assert normalised("N/A") == "na"
    assert normalised("Ä € ’") == "ä€’"


def test_string_match() -> None:
    assert share_held(["Alpha", "beta", "GAMMA", "x1"], "alphabet, Beta; x12", ignore_case=True) == 75
    assert share_held(["Alpha", "beta"], "alpha beta", ignore_case=False) == 50
    assert share_held(["a"], "", ignore_case=True) == 0


@pytest.mark.parametrize(
    ("answer", "text", "score"),
    [
        ("-$0.04", "The basic earnings per share are -$0.04.", 100),
        ("-$0.04", "They are -$0.045.", 0),
        ("《判决文书1》", "《判决文书10》", 2 * 4 / (5 + 5) * 100),
        ("HARTE HANKS INC", "It is Harte  Hanks Inc.", 100),
        ("rose by 5 percent", "it rose by 6 percent", 2 * 3 / (4 + 5) * 100),
        ('{"high": ["A"], "low": ["B", "C"], "none": []}', 'So: {"low": ["c", "B"], "high": ["A"]}', 100),
        ('{"high": ["A"], "low": ["B", "C"]}', "{'high': ['A', 'B'], 'low': ['C']}", 200 / 3),
        ('{"a": [], "b": []}', '{"a": []}', 100),
        ('["# One ", "Two", "Three"]', '["one", "three", "two"]', 200 / 3),
        ('["One", "Two"]', "One, then two", 0),
        ('{"《判决文书1》": "判决结果5"}', "{'《判决文书1》': '判决结果5'}", 100),
        ('{"a": ["b"]}', "{['a']: 'b'}", 0),
        ('["a"]', "[{'a', 'b'}]", 0),
        ('["a", ["b", 1]]', "['a', ('b', 1)]", 100),
        ("[" * 100_000, "no", 0),
    ],
)
def test_loong(answer: str, text: str, score: float) -> None:
    assert score_answer(answer, text)["score"] == pytest.approx(score)
    assert score_answer(answer, answer)["score"] == 100
