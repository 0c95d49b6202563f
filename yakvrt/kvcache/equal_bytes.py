"""Budgets at which KV methods ask the host for equally many bytes in a step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import open_method

if TYPE_CHECKING:
    from ..config import ModelConfig


def comparison_bytes(config: ModelConfig, n_tokens: int, share: float) -> int:
    """Bytes of K and V of a share of the tokens at 4 bits: what the YAKV paper's comparison gives a step.

    Bytes: share * n_tokens * L * Hk * D.
    """
    return int(share * n_tokens * config.n_layers * config.n_kv_heads * config.head_dim)


def equal_budget(
    name: str, args: Mapping[str, str], config: ModelConfig, kind: str, n_tokens: int, share: float
) -> dict[str, str]:
    """A method's parameters with the largest sparse_budget whose step, by its step_bytes(), asks the host for
    no more than comparison_bytes() behind a prompt of n_tokens; one token, page or chunk it gets anyway.

    Parameters that name a sparse_budget, and methods that have none, stay as they are.
    Raises: as open_method().
    """
    module, parameters = open_method(name, args)
    if "sparse_budget" in args or not hasattr(parameters, "sparse_budget"):
        return dict(args)

    def with_tokens(n: int) -> dict[str, str]:
        # a share, since no number of tokens can say one; half a token more, since shares are rounded down
        return {**args, "sparse_budget": repr(min(1.0, (n + 0.5) / n_tokens))}

    def asked(n: int) -> int:
        return int(module.step_bytes(config, open_method(name, with_tokens(n))[1], kind, n_tokens).host)

    allowed = comparison_bytes(config, n_tokens, share)
    return with_tokens(max(1, bisect_right(range(1, n_tokens + 1), allowed, key=asked)))
