"""Prompts and gold answers in the manner of Text2JSON: documents, then entries to extract as a JSON list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


def write_entries(entries: Sequence[Mapping[str, str]]) -> str:
    """A JSON list with one entry a line, as models write it."""
    lines = ",\n".join(f"  {json.dumps(entry, ensure_ascii=False)}" for entry in entries)
    return f"[\n{lines}\n]"


def write_prompt(documents: str, task: str, keys: Mapping[str, str], rules: str = "") -> str:
    """The user's whole turn. `task` says in a sentence what to extract, `keys` describes each key, `rules`
    are more sentences on how values are written."""
    described = "\n".join(f'- "{key}": {text}' for key, text in keys.items())
    form = json.dumps(dict.fromkeys(keys, "..."))
    return (
        f"{documents}\n\n{task} For each of them give these keys:\n{described}\n"
        f"All values are texts, written exactly as they stand above. {rules}"
        f"Answer with one JSON list that holds each of them once, and nothing else:\n[{form}, ...]"
    )
