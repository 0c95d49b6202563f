"""The scorer of LongProc's html_to_tsv: rows of two tables compared after normalisation.

Source: github.com/princeton-pli/LongProc.
"""

from __future__ import annotations

import csv
import re
import string

ARTICLE = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
FENCED = re.compile(r"```tsv(.*)```", re.DOTALL)
OPENING = "```tsv"

Rows = list[tuple[str, ...]]


def normalised(cell: str) -> str:
    """Lower case, without ASCII punctuation, articles and space."""
    return "".join(ARTICLE.sub(" ", cell.lower().translate(NO_PUNCTUATION)).split())


def table_text(text: str) -> str:
    """What stands in the ```tsv fence, up to the last fence; after an open fence, the rest up to another
    opening one; without a fence, all."""
    match = FENCED.search(text)
    if match is not None:
        return match[1].strip()
    return (text.split(OPENING)[1] if OPENING in text else text).strip()


def table_rows(text: str) -> Rows | None:
    """The normalised rows below the header, None when there is none or csv cannot read them.

    A last row of another width than the header's is dropped, such a row elsewhere becomes N/A in all
    columns. Quotes are read as csv reads them. Headers with a repeated name are not read.
    """
    try:
        rows = list(csv.reader(text.strip().split("\n"), delimiter="\t"))
    except csv.Error:
        return None
    if len(rows) < 2 or len(set(rows[0])) < len(rows[0]):
        return None
    width = len(rows[0])
    if len(rows[-1]) != width:
        rows.pop()
    missing = ("na",) * width
    return [
        tuple(normalised(cell) for cell in row) if len(row) == width else missing for row in rows[1:]
    ] or None


def score_table(gold: str, text: str) -> dict[str, float]:
    """Row-level F1 as the score, with precision, recall and extraction_rate, each 0 to 100.

    Rows count wherever they stand and as often as they stand; the header's names do not count, their number
    does.
    """
    wanted, found = table_rows(gold), table_rows(table_text(text))
    if wanted is None or found is None or len(wanted[0]) != len(found[0]):
        return {"score": 0.0, "precision": 0.0, "recall": 0.0, "extraction_rate": 0.0}
    wanted_rows, found_rows = set(wanted), set(found)
    precision = sum(row in wanted_rows for row in found) / len(found)
    recall = sum(row in found_rows for row in wanted) / len(wanted)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {
        "score": 100 * f1,
        "precision": 100 * precision,
        "recall": 100 * recall,
        "extraction_rate": 100.0,
    }
