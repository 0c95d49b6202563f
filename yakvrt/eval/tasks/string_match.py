"""The share of expected strings that a text holds."""

from __future__ import annotations

from collections.abc import Sequence


def share_held(expected: Sequence[str], text: str, *, ignore_case: bool) -> float:
    """0 to 100. A string counts wherever it stands in the text, inside a longer word as well.

    Source: RULER's string_match_all ignores case, NeedleBench's evaluators do not.
    """
    if ignore_case:
        return share_held([part.lower() for part in expected], text.lower(), ignore_case=False)
    return 100 * sum(part in text for part in expected) / len(expected)
