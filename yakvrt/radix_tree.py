"""Sequences of tokens as a radix tree whose nodes hold keys and values: what is alike lies there once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .kvcache.state_blocks import Block

BLOCK_TOKENS = 64  # positions that are shared together: a multiple of what methods encode at once
RUN = 256  # tokens that are compared at once

# Whether a block of that number holds what the sequence at hand does.
Same = Callable[[int, "Block"], bool]


class Node:
    """The tokens of an edge, at positions start to stop - 1, and the blocks whose last position is one of
    them: those from number start // BLOCK_TOKENS on, block i being of BLOCK_TOKENS * i and the positions
    behind it.

    Where a sequence ends, `rest` is what of its state is in no block. Every node but the root ends a sequence
    or has two children and more. `children` by first token: several may have the same tokens, known by
    other bits, as a KV method may know them after a cut.
    """

    __slots__ = ("blocks", "children", "ids", "parent", "rest", "start")

    def __init__(self, parent: Node | None, start: int, ids: list[int]) -> None:
        self.parent, self.start, self.ids = parent, start, ids
        self.blocks: list[Block] = []
        self.rest: Block | None = None
        self.children: dict[int, list[Node]] = {}

    @property
    def stop(self) -> int:
        return self.start + len(self.ids)

    @property
    def block_bytes(self) -> int:
        return sum(block.n_bytes for block in self.blocks)

    def path(self) -> list[Node]:
        """From the root to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def end(self) -> Node:
        """A node below, or this one, where a sequence ends."""
        node = self
        while node.rest is None:
            node = next(iter(node.children.values()))[0]
        return node


class RadixTree:
    """Looks a sequence up in time proportional to its length, times how many nodes hold the same tokens by
    other bits.
    """

    def __init__(self) -> None:
        self.root = Node(None, 0, [])

    def longest(self, ids: Sequence[int], limit: int) -> tuple[Node, int]:
        """The node on whose edge ids cease to be known, and how many of them are, at most limit. Of several,
        one where a sequence ends there.
        """
        found, n = self.root, 0
        for node, shared in self._alike(ids, min(limit, len(ids))):
            if shared > n or (shared == n == node.stop and node.rest):
                found, n = node, shared
        return found, n

    def beginnings(self, ids: Sequence[int]) -> list[Node]:
        """Where sequences end that ids begin with, or are."""
        return [node for node, n in self._alike(ids, len(ids)) if node.stop == n and node.rest]

    def _alike(self, ids: Sequence[int], limit: int) -> Iterator[tuple[Node, int]]:
        """Nodes that begin as ids do, and how many tokens are alike to there."""
        open_nodes = [self.root]
        while open_nodes:
            node = open_nodes.pop()
            if node.stop >= limit:
                continue
            for child in node.children.get(ids[node.stop], ()):
                n = child.start + common_prefix(child.ids, ids, limit - child.start, child.start)
                yield child, n
                if n == child.stop:
                    open_nodes.append(child)

    def place(self, ids: Sequence[int], same: Same) -> Node:
        """The node behind which ids go on by themselves, for which an edge is split if need be; to there,
        blocks are the same.
        """
        node = self.root
        while node.stop < len(ids):
            found, n = None, node.stop
            for child in node.children.get(ids[node.stop], ()):
                alike = child.start + common_prefix(child.ids, ids, len(ids), child.start)
                if (kept := self._same_until(child, alike, same)) > n:
                    found, n = child, kept
            if found is None:
                break
            node = found if n == found.stop else self._split(found, n)
            if node is not found:
                break
        return node

    def _same_until(self, node: Node, stop: int, same: Same) -> int:
        """The position up to which the edge's blocks are the same, at most stop."""
        first = node.start // BLOCK_TOKENS
        for number in range(first, stop // BLOCK_TOKENS):
            if not same(number, node.blocks[number - first]):
                return max(node.start, number * BLOCK_TOKENS)
        return stop

    def _split(self, node: Node, at: int) -> Node:
        """A node of its own for the positions before `at`. No block is copied."""
        parent = node.parent
        assert parent
        upper = Node(parent, node.start, node.ids[: at - node.start])
        n_blocks = at // BLOCK_TOKENS - node.start // BLOCK_TOKENS
        upper.blocks, node.blocks = node.blocks[:n_blocks], node.blocks[n_blocks:]
        self._replace(node, upper)
        node.ids, node.start, node.parent = node.ids[at - node.start :], at, upper
        upper.children = {node.ids[0]: [node]}
        return upper

    def append(self, node: Node, ids: list[int]) -> Node:
        """A child of it with an edge of these tokens, which still holds nothing."""
        child = Node(node, node.stop, ids)
        node.children.setdefault(ids[0], []).append(child)
        return child

    def tidy(self, node: Node) -> int:
        """Removes a node in which nothing ends any more, or joins it with its only child; so with those above
        it. Returns: bytes of the blocks that are gone.
        """
        n_bytes = 0
        while node.parent and node.rest is None:
            parent = node.parent
            below = [child for children in node.children.values() for child in children]
            if len(below) > 1:
                break
            if below:
                (child,) = below
                child.ids, child.start = node.ids + child.ids, node.start
                child.blocks = node.blocks + child.blocks
                self._replace(node, child)
                child.parent = parent
                break
            n_bytes += node.block_bytes
            siblings = parent.children[node.ids[0]]
            siblings.remove(node)
            if not siblings:
                del parent.children[node.ids[0]]
            node = parent
        return n_bytes

    def _replace(self, node: Node, other: Node) -> None:
        assert node.parent
        siblings = node.parent.children[node.ids[0]]
        siblings[siblings.index(node)] = other


def common_prefix(a: Sequence[int], b: Sequence[int], limit: int, skip: int = 0) -> int:
    """How many tokens at the beginning of a and of b[skip:] are the same, at most `limit`."""
    n, end = 0, min(len(a), len(b) - skip, limit)
    while n + RUN <= end and a[n : n + RUN] == b[skip + n : skip + n + RUN]:
        n += RUN
    while n < end and a[n] == b[skip + n]:
        n += 1
    return n
