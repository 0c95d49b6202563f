"""RULER's words: the lists of the package wonderwords."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

PACKAGE = "wonderwords"


def words(kinds: Sequence[str]) -> list[str]:
    """The words of the lists ("noun", "adjective", "verb") together, sorted, each once.

    Raises: ValueError when the package is not there.
    """
    try:
        folder = resources.files(f"{PACKAGE}.assets")
        texts = [folder.joinpath(f"{kind}list.txt").read_text(encoding="utf-8") for kind in kinds]
    except (ModuleNotFoundError, FileNotFoundError):
        raise ValueError(
            f"RULER takes its words from {PACKAGE} 3.0.1, which is not there: pip install 'yakvrt[eval]'"
        ) from None
    return sorted({line.strip() for text in texts for line in text.splitlines()} - {""})
