"""How many tokens a budget buys, and the limits of parameters."""

from __future__ import annotations

MOST_TOKENS = 1 << 31


def check_budget(name: str, value: float, *, zero: bool = False) -> None:
    """Up to 1 a budget is a share of the prompt, above that a whole number of tokens.

    Raises: ValueError for anything else; 0 is allowed where `zero` says so.
    """
    whole = value == int(value) if abs(value) < MOST_TOKENS else False
    if (value == 0 and zero) or 0 < value <= 1 or (value > 1 and whole):
        return
    raise ValueError(
        f"{name}={value:g} is no budget; give a share of the prompt above 0 and up to 1, "
        f"or a whole number of tokens below {MOST_TOKENS}"
    )


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raises: ValueError outside the limits."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value:g} is out of range; {low:g} to {high:g} are allowed")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises: ValueError for any other value."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}")


def budget_tokens(budget: float, n_tokens: int) -> int:
    """Tokens that a budget buys for a prompt of n_tokens: a share is rounded down, but never to nothing."""
    return max(1, int(budget * n_tokens)) if budget <= 1 else int(budget)
