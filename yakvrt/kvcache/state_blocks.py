"""A slot's state in parts: blocks of so many tokens each, which other sequences may share, and a rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .contract import StateArray, TokenRows


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Arrays by name, or parts of them, in memory of their own. Nobody writes them."""

    arrays: Mapping[str, np.ndarray]
    n_bytes: int


class StateBlocks:
    """A view of the state of a slot of n_held tokens, cut after every n_tokens. Block i holds of every array
    that is divided among tokens the rows that are complete at n_tokens * (i + 1) and were not before; the
    rest is what no block holds.
    """

    def __init__(self, state: Mapping[str, StateArray], n_held: int, n_tokens: int) -> None:
        self.n_held, self.n_tokens = n_held, n_tokens
        self._undivided: dict[str, np.ndarray] = {}
        self._divided: dict[TokenRows, dict[str, np.ndarray]] = {}  # few ways, of many arrays
        for name, part in state.items():
            arrays = self._undivided if part.rows is None else self._divided.setdefault(part.rows, {})
            arrays[name] = np.asarray(part.values)

    def block(self, number: int) -> Block:
        return _copied(self._views(number))

    def rest(self) -> Block:
        views = dict(self._undivided)
        for rows, arrays in self._divided.items():
            first = rows.complete(self.n_held // self.n_tokens * self.n_tokens)
            views |= _parts(arrays, rows.axis, first, None)
        return _copied(views)

    def holds(self, number: int, block: Block) -> bool:
        """Whether that block here is the same, bit for bit."""
        views = self._views(number)
        return all(_are_same(views[name], kept) for name, kept in block.arrays.items())

    def _views(self, number: int) -> dict[str, np.ndarray]:
        views: dict[str, np.ndarray] = {}
        for rows, arrays in self._divided.items():
            first, last = (rows.complete(self.n_tokens * i) for i in (number, number + 1))
            if first < last:
                views |= _parts(arrays, rows.axis, first, last)
        return views


def fill_state(
    state: Mapping[str, StateArray], n_tokens: int, blocks: Sequence[Block], rest: Block, n: int
) -> None:
    """Writes the state of a slot that was cut after every n_tokens: all blocks, and the rest. Rows that only
    tokens behind the first n need may be left out, for truncate() to n follows.
    """
    for name, part in state.items():
        values, rows = part.values, part.rows
        if rows is None:
            values[...] = rest.arrays[name]
            continue
        needed = min(rows.reaching(n), values.shape[rows.axis])
        n_blocks = next((i for i in range(len(blocks)) if rows.complete(i * n_tokens) >= needed), len(blocks))
        pieces = [blocks[i].arrays[name] for i in range(n_blocks) if name in blocks[i].arrays]
        if rows.complete(len(blocks) * n_tokens) < needed:
            pieces.append(rest.arrays[name])
        if pieces:
            written = sum(piece.shape[rows.axis] for piece in pieces)
            target: Any = values[along(rows.axis, 0, written)]
            if isinstance(target, np.ndarray):
                np.concatenate(pieces, rows.axis, out=target)
            else:
                target[...] = np.concatenate(pieces, rows.axis)


def along(axis: int, first: int, last: int | None) -> tuple[slice, ...]:
    """The index of a range along an axis."""
    return (*[slice(None)] * axis, slice(first, last))


def _parts(
    arrays: Mapping[str, np.ndarray], axis: int, first: int, last: int | None
) -> dict[str, np.ndarray]:
    at = along(axis, first, last)
    return {name: array[at] for name, array in arrays.items()}


def _copied(views: Mapping[str, np.ndarray]) -> Block:
    """All in one piece of memory, so that none of it outlives another."""
    n_bytes = sum(view.nbytes for view in views.values())
    memory, at, arrays = np.empty(n_bytes, np.uint8), 0, {}
    for name in sorted(views, key=lambda name: -views[name].itemsize):  # so that all are aligned
        view = views[name]
        arrays[name] = memory[at : at + view.nbytes].view(view.dtype).reshape(view.shape)
        arrays[name][...] = view
        at += view.nbytes
    return Block(arrays, n_bytes)


def _are_same(a: np.ndarray, b: np.ndarray) -> bool:
    """As bits, whatever numbers they are. Shapes: of both the same, without gaps along the last axis."""
    n_bytes = a.shape[-1] * a.itemsize
    word = next(f"u{size}" for size in (8, 4, 2, 1) if n_bytes % size == 0)
    return bool((a.view(word) == b.view(word)).all())
