"""YAKV as its paper has it: where a slot's tokens lie, as plain functions of its length.

Positions of a slot of n tokens: first ones [0, n_sinks) and those from `end` on are exact; between them
tokens are indexed, [n_sinks, end), and come from codes. `end` follows from prompts and cuts alone: what is
generated stays exact, however long it becomes.
"""

from __future__ import annotations

from dataclasses import dataclass

from .higgs_layout import BLOCK_TOKENS

RING_BEYOND = 1024  # generated tokens whose rows a GPU has beside the last ones: older ones are read far away
STORE_BLOCK = 4096  # tokens whose float32 rows are held while they are encoded


@dataclass(frozen=True, slots=True)
class PaperShape:
    """`rule` ranks tokens for a group of query heads; exact rows are numbers of `kind`. RoPE turns pair i by
    position * inv_freq[i], and scales by rope_scale. A page is a token.
    """

    group: int
    head_dim: int
    kind: str
    n_sinks: int
    recent: int
    rule: str
    inv_freq: tuple[float, ...]
    rope_scale: float
    page: int = 1

    @property
    def by_token(self) -> dict[str, tuple[int, int, int]]:
        """As PageShape.by_token: which tokens are indexed depends on what was prompt, so all of them have
        room in both tables.
        """
        coded = self.n_sinks, self.recent
        names = (f"{rows}_{what}" for rows in ("selector", "k", "v") for what in ("codes", "scales"))
        found = dict.fromkeys((*names, "codes", "scales"), (1, *coded))
        return found | {"exact": (1, 0, 0), "selectors": (BLOCK_TOKENS, *coded)}

    def limits(self, n_held: int) -> dict[str, tuple[int, int]]:
        """As PageShape.limits()."""
        return {"ends": (0, self.indexed_end(n_held))}

    def indexed_end(self, n: int) -> int:
        """The end of the indexed positions of a prompt of n tokens."""
        return max(min(self.n_sinks, n), n - self.recent)


def ring_len(n_tokens: int, recent: int) -> int:
    """Places by position of a slot of n_tokens on a GPU, behind those of the first ones."""
    return min(n_tokens, recent + RING_BEYOND)
