"""The head of a model card: the lines between two `---` at the start of README.md, a small part of YAML.

Read are texts and flat lists of texts under keys without indentation; anything else is passed over.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

MAX_CARD_BYTES: Final = 1 << 20
_ENTRY: Final = re.compile(r"([\w-]+):(?:\s+(.*))?")
_ITEM: Final = re.compile(r"\s*-\s+(.*)")
_NOTHING: Final = frozenset({"", "~", "null"})

Card = dict[str, str | list[str]]


def read_card(path: Path) -> Card:
    """The entries of a README.md; empty where there is no such file, no head or no text in it."""
    try:
        with path.open("rb") as file:
            lines = file.read(MAX_CARD_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    card: Card = {}
    key, items = "", list[str]()
    for line in [*lines[1 : lines.index("---", 1)], "end:"]:
        entry = _ENTRY.fullmatch(line.rstrip())
        if entry is None:
            item = _ITEM.fullmatch(line)
            if item and key:
                # A list of mappings is no list of texts.
                items.append("" if _ENTRY.fullmatch(item[1]) else _text(item[1]))
            continue
        if items and all(items):
            card[key] = items
        key, items = entry[1], []
        _take(card, key, (entry[2] or "").strip())
    return card


def _take(card: Card, key: str, value: str) -> None:
    if value.startswith("[") and value.endswith("]"):
        texts = [_text(item) for item in value[1:-1].split(",")]
        if texts and all(texts):
            card[key] = texts
    elif value[:1] not in ("|", ">", "{", "[", "&", "*", "!") and (text := _text(value)):
        card[key] = text


def _text(value: str) -> str:
    """A scalar without quotes and comment; nothing for null."""
    value = value.strip()
    if value[:1] in ("'", '"'):
        end = value.find(value[0], 1)
        return value[1:end] if end > 0 else ""
    value = re.split(r"\s#", value, maxsplit=1)[0].strip()
    return "" if value in _NOTHING or value[:1] in ("#", "{", "[") else value
