"""Pages of tokens of which a step reads the best: which there are, as plain functions of a slot's length.

Exact rows of all tokens rest on the host. The first n_sinks and the last ones are on the device too, in a
ring, and always read: a page can be chosen once `window` tokens lie between it and the newest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np


class PromptProxies(NamedTuple):
    """What a prompt tells of its keys. basis: what turns keys into proxies, of PageShape.basis_shape for
    every head; proxies [heads, n, proxy width] of the prompt's keys where they are known already; asking
    [heads, 1, proxy width]: queries whose best pages the first step is to find in the cache.
    """

    basis: np.ndarray
    proxies: np.ndarray | None = None
    asking: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class PageShape:
    """`rule` ranks pages of `page` tokens for a group of query heads by what stands for them: a box around
    their keys, "extremes" or "centred" (page_digests.py); of pages of one token the key itself, "key", or
    n_channels of it, "channels", when a slot's matrix has turned it, or as many numbers, "factors", by which
    it is a row of low rank (key_factors.py), of every query head by itself. `sharing` groups choose of a KV
    head's rows.

    Probabilities are those among the pages that can be chosen, with "key" among all tokens. n_sinks is a
    multiple of `page`. With an alpha fewer pages are chosen where, on average over the query heads, fewer
    have logits within alpha of the largest; at least one.
    """

    group: int
    head_dim: int
    kind: str
    page: int
    n_sinks: int
    window: int
    proxy: str
    rule: str
    n_channels: int = 0
    sharing: int = 1
    alpha: float = inf

    def __post_init__(self) -> None:
        assert self.proxy != "factors" or (self.group, self.page, self.n_sinks) == (1, 1, 0)

    @property
    def has_boxes(self) -> bool:
        return self.proxy in ("extremes", "centred")

    @property
    def proxy_width(self) -> int:
        """Numbers that stand for a page; 0 where its key does."""
        return self.n_channels or (2 * self.head_dim if self.has_boxes else 0)

    @property
    def basis_shape(self) -> tuple[int, ...]:
        """Of float32 that turn the keys of a head into proxies; the factors of queries, then of keys."""
        if self.proxy == "factors":
            return 2, self.n_channels, self.head_dim
        return self.head_dim, self.n_channels

    @property
    def proxy_kind(self) -> str:
        """The number format of proxies."""
        return "bf16" if self.proxy == "factors" else self.kind

    @property
    def ring_len(self) -> int:
        return self.window + self.page

    @property
    def ring_places(self) -> int:
        return self.n_sinks + self.ring_len

    @property
    def by_token(self) -> dict[str, tuple[int, int, int]]:
        """Of a slot's arrays those that are divided among tokens: how many an entry is of, the position of
        the first of them, and how many further ones complete it.
        """
        return {"rows": (1, 0, 0), "proxies": (self.page, 0, 0)}

    def limits(self, n_held: int) -> dict[str, tuple[int, int]]:
        """Of the arrays of a slot of n_held tokens those that place something, and between what numbers."""
        end = chosen_end(n_held, self.n_sinks, self.window, self.page)
        return {"recalled": (-1, (end - self.n_sinks) // self.page - 1)}

    def most_rows(self, n_tokens: int, most_pages: int) -> int:
        """Rows of a head that a step of a slot of n_tokens reads at most."""
        return min(n_tokens, self.ring_places + most_pages * self.page)


def chosen_end(n: int, n_sinks: int, window: int, page: int) -> int:
    """Pages of positions n_sinks .. chosen_end - 1 can be chosen while the step of the newest of n tokens
    runs. Plain Python for the CPU and the tests, compiled into a kernel.
    """
    return n_sinks + max(0, n - 1 - n_sinks - window) // page * page
