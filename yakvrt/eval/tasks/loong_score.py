"""What answers to Loong's questions are worth without a judge.

Loong's own score is given by a large model, which is not at hand here; this is another score and not
comparable with published ones. Structured answers (groups, chains) are compared item by item, texts by the
gold text or its words.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

# A Chinese or Japanese character is a word of its own.
WORD = re.compile(r"[㐀-鿿]|[^\W㐀-鿿]+(?:[.,][^\W㐀-鿿]+)*")
OUTER = " \t\n#\"'`*.。;；《》"


def normalised(text: str) -> str:
    """Compatibility forms, case and space folded, without marks around it."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(OUTER)


def score_answer(answer: str, text: str) -> dict[str, float]:
    """The score, 0 to 100. The gold answer is a text, or JSON: a list whose order counts, or an object of
    groups."""
    try:
        gold = json.loads(answer)
    except (ValueError, RecursionError):
        gold = None
    if not isinstance(gold, list | dict):
        f1 = words_f1(answer, text)
        return {"score": 100.0 if holds(text, answer) else f1, "f1": f1}
    predicted = structure(text)
    if predicted is None:
        return {"score": 0.0, "parsed": 0.0}
    if isinstance(gold, list) and isinstance(predicted, list):
        shared, sizes = longest_common(_items(gold), _items(predicted)), (len(gold), len(predicted))
    else:
        pairs, found = Counter(_pairs(gold)), Counter(_pairs(predicted))
        shared, sizes = (pairs & found).total(), (pairs.total(), found.total())
    return {"score": _f1(shared, *sizes), "parsed": 100.0}


def structure(text: str) -> Any:
    """The first JSON object or list in a text, also in Python's quotes; None when there is none."""
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    if not starts:
        return None
    start = min(starts)
    try:
        return json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        end = text.rfind("}" if text[start] == "{" else "]")
    try:  # a set or a number with an i is no JSON, and a list no key
        found = json.loads(json.dumps(ast.literal_eval(text[start : end + 1])))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return found if isinstance(found, dict | list) else None


def holds(text: str, gold: str) -> bool:
    """Whether the gold text stands in the text, not as a part of a longer word or number."""
    wanted = normalised(gold)
    inside = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return (
        bool(wanted)
        and re.search(rf"(?<![0-9a-z]){re.escape(wanted)}(?![0-9a-z]|[.,][0-9])", inside) is not None
    )


def words_f1(gold: str, text: str) -> float:
    """F1 of the words, 0 to 100."""
    wanted, found = (Counter(WORD.findall(normalised(side))) for side in (gold, text))
    return _f1((wanted & found).total(), wanted.total(), found.total())


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for item in first:
        before = row
        row = [0]
        for i, other in enumerate(second):
            row.append(before[i] + 1 if item == other else max(before[i + 1], row[i]))
    return row[-1]


def _f1(shared: int, wanted: int, found: int) -> float:
    return 100 * 2 * shared / (wanted + found) if wanted + found else 100.0


def _items(values: Sequence[Any]) -> list[str]:
    return [normalised(value if isinstance(value, str) else json.dumps(value)) for value in values]


def _pairs(value: Any) -> list[tuple[str, str]]:
    """(group, item) for every item of an object of groups; a list is one group without a name."""
    groups = value if isinstance(value, dict) else {"": value}
    pairs = []
    for group, items in groups.items():
        listed = items if isinstance(items, list) else [items]
        pairs += [(normalised(str(group)), item) for item in _items(listed)]
    return pairs
