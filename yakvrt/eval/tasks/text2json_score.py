"""The scorer of Text2JSON: entries of a JSON list, matched by their names.

Source: arXiv 2604.08426 and its published evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

MISSING_KEY = 1 / 2
WRONG_VALUE = 1 / 4


def fold(text: str) -> str:
    """Curly apostrophes count as straight ones."""
    return text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def predicted_list(text: str) -> list[object] | None:
    """The list in a model's text; None unless the text holds exactly one `[` and one `]`, in this order,
    with JSON between them."""
    if text.count("[") != 1 or text.count("]") != 1:
        return None
    start, end = text.index("["), text.index("]")
    try:
        found = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def score_entries(gold: Sequence[Mapping[str, str]], text: str) -> dict[str, float]:
    """The sample's score with its parts, each 0 to 100: `names` (gold names found), `parsed` (0 or 100).

    An entry whose name is in the gold list counts 1, less 1/2 for each key that is missing or null and 1/4
    for each wrong value; whole numbers count as their digits. Entries that match nothing, repeat a name or
    have none enlarge what the sum is divided by. Gold names must differ.
    """
    predicted = predicted_list(text)
    if predicted is None:
        return {"score": 0.0, "names": 0.0, "parsed": 0.0}
    left = {fold(entry["name"]): entry for entry in gold}
    total, union = 0.0, len(gold)
    for entry in predicted:
        name = entry.get("name") if isinstance(entry, dict) else None
        match = left.pop(fold(name), None) if isinstance(name, str) else None
        if match is None or not isinstance(entry, dict):
            union += 1
            continue
        total += 1.0
        for key, value in match.items():
            if key != "name":
                total -= _penalty(value, entry.get(key))
    found = len(gold) - len(left)
    return {"score": 100 * total / union, "names": 100 * found / len(gold), "parsed": 100.0}


def _penalty(gold: str, value: object) -> float:
    if value is None:
        return MISSING_KEY
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    # The published scorer stops with an error at other types; here they are wrong values.
    return 0.0 if isinstance(value, str) and fold(value) == fold(gold) else WRONG_VALUE
