"""Texts as long as a token budget allows."""

from __future__ import annotations

from collections.abc import Callable

PROBE_PIECES = 200
# A text this close to its limit (1/500, or a few tokens, which are at most 1/50) is full: a few counts of a
# long text are enough.
CLOSE_SHARE = 500
CLOSE_TOKENS = 8
FEW_SHARE = 50
INTERPOLATIONS = 8


def fill(
    build: Callable[[int], str], most: int, limit: int, count: Callable[[str], int], what: str
) -> tuple[str, int]:
    """The longest text build(n), n of 0 to `most` pieces, that has at most `limit` tokens, and its n.

    The tokens of build(n) must grow with n, roughly in proportion: n is found by interpolation, with some
    five counts of a full text, and may miss the very longest by CLOSE_TOKENS or 1/500 of the limit.

    Raises: ValueError when build(0) is too long already.
    """
    low, text = 0, build(0)
    base = low_tokens = count(text)
    if base > limit:
        raise ValueError(
            f"{what} takes {base} tokens at the least, more than the length {limit}; give a longer one"
        )
    high, high_tokens = most + 1, 0  # too long, or too many pieces; its tokens where they were counted
    close = max(min(CLOSE_TOKENS, limit // FEW_SHARE), limit // CLOSE_SHARE)
    guess, turn = min(PROBE_PIECES, most), 0
    while low + 1 < high and limit - low_tokens > close:
        longer = build(guess)
        tokens = count(longer)
        if tokens <= limit:
            low, low_tokens, text = guess, tokens, longer
        else:
            high, high_tokens = guess, tokens
        turn += 1
        if turn > INTERPOLATIONS:
            guess = (low + high) // 2
        else:
            per_piece = (
                (high_tokens - low_tokens) / (high - low) if high_tokens else (low_tokens - base) / low
            )
            step = (limit - close / 2 - low_tokens) / max(per_piece, 1e-3)
            guess = min(max(low + int(step), low + 1), high - 1)
    return text, low
