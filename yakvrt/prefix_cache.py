"""What slots held before others needed them: kept in memory, found by how the tokens begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kvcache.state_blocks import Block, StateBlocks, fill_state
from .radix_tree import BLOCK_TOKENS, Node, RadixTree

if TYPE_CHECKING:
    from .kvcache.contract import StateArray

NOTHING = Block({}, 0)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first tokens, `ids`, of a kept sequence of n_held. Valid until the cache keeps another."""

    ids: Sequence[int]
    n_held: int
    _end: Node

    def fill(self, state: Mapping[str, StateArray]) -> None:
        """Writes the state of the whole sequence, but for rows that truncate() to these tokens skips."""
        assert self._end.rest
        blocks = [block for node in self._end.path() for block in node.blocks]
        fill_state(state, BLOCK_TOKENS, blocks, self._end.rest, len(self.ids))


class PrefixCache:
    """States of sessions of one engine in a radix tree, never more than max_bytes of them; the sequence that
    is unused for longest goes first. Blocks in which sequences begin alike, token for token and bit for bit,
    are held once, so what is found is what a copy of the whole state would be. Not thread-safe.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.n_bytes = 0
        self._tree = RadixTree()
        self._ends: dict[Node, None] = {}  # of sequences, unused for longest first

    def __len__(self) -> int:
        """Sequences."""
        return len(self._ends)

    def keep(self, ids: Sequence[int], state: Mapping[str, StateArray]) -> None:
        """Copies a state, unless it can never fit; those that it continues go, and the oldest ones if there
        is no room.
        """
        n_bytes = sum(part.values.nbytes for part in state.values())
        if not ids or n_bytes > self._max_bytes:
            return
        given = StateBlocks(state, len(ids), BLOCK_TOKENS)
        node = self._tree.place(ids, given.holds)
        end = self._tree.append(node, list(ids[node.stop :])) if node.stop < len(ids) else node
        try:
            self._supersede(ids, end)
            missing = n_bytes - sum(each.block_bytes for each in end.path())
            while self.n_bytes + missing > self._max_bytes:
                self._forget_oldest()
            first, last = end.start // BLOCK_TOKENS + len(end.blocks), end.stop // BLOCK_TOKENS
            blocks, rest = [given.block(number) for number in range(first, last)], given.rest()
        except BaseException:
            end.rest = None
            self.n_bytes -= self._tree.tidy(end)
            raise
        end.blocks, end.rest = end.blocks + blocks, rest
        self.n_bytes += missing
        self._ends[end] = None

    def find(self, ids: Sequence[int], limit: int) -> Prefix | None:
        """The longest beginning of ids that is known, at most limit tokens; its sequence counts as used."""
        node, n = self._tree.longest(ids, limit)
        if not n:
            return None
        end = node.end()
        del self._ends[end]
        self._ends[end] = None
        return Prefix(ids[:n], end.stop, end)

    # No caller of these holds a node that goes, or its memory would stay.

    def _supersede(self, ids: Sequence[int], end: Node) -> None:
        """Sequences that ids continue or repeat go; that of `end` is under way, so it stays."""
        known = self._tree.beginnings(ids)
        for node in known:
            self._drop_rest(node)
        end.rest = NOTHING
        for node in known:
            self.n_bytes -= self._tree.tidy(node)

    def _forget_oldest(self) -> None:
        end = next(iter(self._ends))
        self._drop_rest(end)
        self.n_bytes -= self._tree.tidy(end)

    def _drop_rest(self, end: Node) -> None:
        """The sequence does not end there any more."""
        assert end.rest
        self.n_bytes -= end.rest.n_bytes
        end.rest = None
        del self._ends[end]
