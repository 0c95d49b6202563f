"""The prefix cache: what is found is bit for bit what a copy of a whole slot would give."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from test_kvcache_contract import LITTLE, MODULES, engine, ids_of
from test_slot_state import RESIDUAL

import yakvrt
from yakvrt import radix_tree
from yakvrt.kvcache import state_blocks
from yakvrt.kvcache.contract import StateArray, TokenRows
from yakvrt.prefix_cache import Prefix, PrefixCache
from yakvrt.radix_tree import Node, common_prefix

FAMILY = "qwen3"
ROWS = {
    "rows": TokenRows(1),
    "tiles": TokenRows(0, 16),  # the last one is there when it has begun
    "digests": TokenRows(0, 24),
    "blocks": TokenRows(1, 64, first=4, behind=100, size=8),
}


def state_of(ids: Sequence[int], kind: int = 0) -> dict[str, StateArray]:
    """A slot of a method of the test's own. Its rows follow from a token and its position; with another kind
    other bits stand for the same tokens from position 70 on.
    """
    n = len(ids)
    each = np.array(ids) * 1000 + np.arange(n) + kind * 500_000 * (np.arange(n) >= 70)
    tiles = np.zeros(-(-n // 16) * 16, np.int64)
    tiles[:n] = each
    blocks = each[4 : 4 + ROWS["blocks"].complete(n) // 8 * 64].reshape(-1, 64)[:, :8]
    return {
        "rows": StateArray(np.stack([each, -each]).astype(np.int32), rows=ROWS["rows"]),
        "tiles": StateArray(tiles.reshape(-1, 16).astype(np.uint16), rows=ROWS["tiles"]),
        "digests": StateArray(each[: n // 24 * 24].reshape(-1, 24).sum(axis=1), rows=ROWS["digests"]),
        "blocks": StateArray(np.ascontiguousarray(blocks.reshape(1, -1)), rows=ROWS["blocks"]),
        "window": StateArray(np.float32(each[-100:].sum() + np.arange(7))),
    }


def nodes(cache: PrefixCache) -> Iterator[Node]:
    left = [cache._tree.root]
    while left:
        node = left.pop()
        below = [child for children in node.children.values() for child in children]
        if node is not cache._tree.root:
            assert node.rest or len(below) > 1
            assert len(node.blocks) == node.stop // 64 - node.start // 64
        for first, children in node.children.items():
            assert children
            assert {child.ids[0] for child in children} == {first}
            assert {child.start for child in children} == {node.stop}
            assert all(child.parent is node for child in children)
        left += below
        yield node


def check_bytes(cache: PrefixCache) -> None:
    """What is counted is what is there, once."""
    every = list(nodes(cache))
    blocks = [block for node in every for block in (*node.blocks, node.rest) if block]
    assert len({id(block) for block in blocks}) == len(blocks)
    assert cache.n_bytes == sum(block.n_bytes for block in blocks)
    for block in blocks:
        assert block.n_bytes == sum(array.nbytes for array in block.arrays.values())
    assert set(cache._ends) == {node for node in every if node.rest}


def grown(draw: random.Random, held: list[list[int]]) -> list[int]:
    """A new sequence: from its beginning, or from that of one before."""
    base = draw.choice(held) if held and draw.random() < 0.8 else []
    kept = draw.choice([len(base), draw.randint(0, len(base))])
    return base[:kept] + [draw.randrange(3) for _ in range(draw.randint(1, 150))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_bytes", [12_000, 60_000, 1 << 30])
def test_random_trees(seed: int, max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest beginning of all kept sequences is found, with the state of one that has it; memory holds
    no more than it may while blocks are copied, and the oldest sequences have gone.
    """
    draw, cache = random.Random(seed), PrefixCache(max_bytes)
    kept: dict[tuple[int, ...], dict[str, StateArray]] = {}
    copied, alive = state_blocks._copied, [0]

    def free(n_bytes: int) -> None:
        alive[0] -= n_bytes

    def counted(views: Mapping[str, np.ndarray]) -> state_blocks.Block:
        block = copied(views)
        if block.n_bytes:
            memory = next(iter(block.arrays.values())).base
            assert memory is not None
            assert memory.nbytes == block.n_bytes
            weakref.finalize(memory, free, block.n_bytes)
            alive[0] += block.n_bytes
            assert alive[0] <= max_bytes
        return block

    monkeypatch.setattr(state_blocks, "_copied", counted)
    for _ in range(60):
        ids = grown(draw, [list(known) for known in kept])
        state = state_of(ids, draw.randrange(3))
        cache.keep(ids, state)
        check_bytes(cache)
        assert cache.n_bytes == alive[0] <= max_bytes
        if sum(part.values.nbytes for part in state.values()) > max_bytes:
            continue
        kept = {known: of for known, of in kept.items() if known != tuple(ids[: len(known)])}
        kept[tuple(ids)] = state
        kept = dict(list(kept.items())[-len(cache) :])
        assert [len(known) for known in kept] == [node.stop for node in cache._ends]
        asked = grown(draw, [list(known) for known in kept])
        limit = draw.randint(0, len(asked))
        lengths = {known: common_prefix(known, asked, limit) for known in kept}
        prefix = cache.find(asked, limit)
        if prefix is None:
            assert not any(lengths.values())
            continue
        n = len(prefix.ids)
        assert prefix.ids == asked[:n]
        assert n == max(lengths.values())
        alike = [known for known in kept if lengths[known] == n and len(known) == prefix.n_held]
        (known,) = [known for known in alike if is_filled(prefix, kept[known])]
        kept[known] = kept.pop(known)  # used last
        del prefix


def is_filled(prefix: Prefix, state: Mapping[str, StateArray]) -> bool:
    """Whether the prefix writes this state, as far as its tokens go."""
    n, filled = len(prefix.ids), {}
    for name, part in state.items():
        filled[name] = part._replace(values=np.zeros_like(part.values))
    prefix.fill(filled)
    for name, part in state.items():
        end = None if part.rows is None else part.rows.reaching(n)
        at = (...,) if part.rows is None else state_blocks.along(part.rows.axis, 0, end)
        if not np.array_equal(filled[name].values[at], part.values[at]):
            return False
    return True


def found(cache: PrefixCache, ids: Sequence[int], limit: int = 9999) -> int:
    prefix = cache.find(ids, limit)
    return len(prefix.ids) if prefix else 0


def test_a_common_beginning_is_held_once() -> None:
    """Also of those that know its end by other bits; they are told apart by what follows."""
    system, cache = [1] * 2000, PrefixCache(1 << 30)
    tails = [[2 + i] * 100 for i in range(8)]
    for i, tail in enumerate(tails):
        cache.keep([*system, *tail], state_of([*system, *tail], kind=i % 2))
    one = sum(part.values.nbytes for part in state_of([*system, *tails[0]]).values())
    check_bytes(cache)
    assert cache.n_bytes < 2.6 * one  # position 70 and on by two kinds of bits
    for i, tail in enumerate(tails):
        prefix = cache.find([*system, *tail, 0], 9999)
        assert prefix
        assert len(prefix.ids) == prefix.n_held == 2100
        assert is_filled(prefix, state_of([*system, *tail], kind=i % 2))


def test_what_was_used_last_stays() -> None:
    cache = PrefixCache(sum(part.values.nbytes for part in state_of([0] * 300).values()))
    for first in (1, 2, 3):
        cache.keep([first] * 90, state_of([first] * 90))
    assert len(cache) == 3
    assert found(cache, [1] * 90) == 90
    cache.keep([4] * 90, state_of([4] * 90))
    assert [found(cache, [first] * 95, 80) for first in (1, 2, 3, 4)] == [80, 0, 80, 80]
    cache.keep([3] * 170, state_of([3] * 170))  # goes on from what is there
    assert [found(cache, [first] * 200) for first in (1, 3, 4)] == [0, 170, 90]
    cache.keep([5] * 301, state_of([5] * 301))  # can never fit
    cache.keep([], {})
    assert len(cache) == 2
    check_bytes(cache)


def test_a_copy_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: state_blocks.StateBlocks) -> state_blocks.Block:
        raise MemoryError

    cache = PrefixCache(1 << 20)
    cache.keep([1] * 200 + [2] * 50, state_of([1] * 200 + [2] * 50))
    for ids in ([1] * 300, [1] * 200 + [2] * 60, [1] * 200):
        with monkeypatch.context() as patched:
            patched.setattr(state_blocks.StateBlocks, "rest", fail)
            with pytest.raises(MemoryError):
                cache.keep(ids, state_of(ids))
        check_bytes(cache)
    assert (len(cache), cache.n_bytes) == (0, 0)  # it was continued by what failed


def test_a_look_up_follows_the_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many other sequences there are."""
    cache, draw = PrefixCache(1 << 30), random.Random(5)
    system = [draw.randrange(99) for _ in range(200)]
    every = [[*system, i, *[draw.randrange(99) for _ in range(20)]] for i in range(200)]
    for ids in every:
        cache.keep(ids, state_of(ids))
    compared = []

    def counted(a: Sequence[int], b: Sequence[int], limit: int, skip: int) -> int:
        compared.append(a)
        return common_prefix(a, b, limit, skip)

    monkeypatch.setattr(radix_tree, "common_prefix", counted)
    assert found(cache, every[77]) == 221
    assert len(compared) == 2


@pytest.mark.parametrize(("n", "limit"), [(0, 9), (1, 9), (255, 300), (256, 300), (257, 300), (700, 600)])
def test_common_prefix(n: int, limit: int) -> None:
    a = list(range(1000))
    for b in ([*a[:n], -1], a[:n]):
        assert common_prefix(a, b, limit) == min(n, limit)
        assert common_prefix(a, [7, 8, *b], limit, 2) == min(n, limit)
        assert common_prefix(b, a, limit) == min(n, limit)


def whole(loaded: yakvrt.Engine, session: yakvrt.Session) -> dict[str, np.ndarray]:
    """A copy of all that the slot holds."""
    kv: Any = loaded.runner._kv
    return {name: np.array(part.values) for name, part in kv.state(session.slot, len(session.ids)).items()}


def load_whole(
    loaded: yakvrt.Engine, session: yakvrt.Session, ids: list[int], arrays: Mapping[str, np.ndarray], n: int
) -> None:
    """Such a copy, cut to n tokens."""
    kv: Any = loaded.runner._kv
    session.truncate(0)
    for name, part in kv.state(session.slot, len(ids)).items():
        part.values[...] = arrays[name]
    session._ids.extend(ids)
    session.truncate(n)


def take_in(session: yakvrt.Session, ids: list[int]) -> list[np.ndarray]:
    """As a prompt, but for the last ones, which are decoded; a token before them that both do."""
    last = len(ids) // 3
    first = [session.prefill(ids[:-last])] if last < len(ids) else []
    return first + [session.decode(token) for token in ids[len(ids) - last :]]


@pytest.mark.parametrize("name", [*MODULES, *RESIDUAL])
def test_what_is_found_goes_on_as_a_copy_of_all(name: str) -> None:
    """Conversations that grow from one another's beginnings, with every method: from the cache the same bits
    follow as from a whole copy of the slot, cut.
    """
    draw, cache = random.Random(name), PrefixCache(1 << 30)
    vocabulary, kept = ids_of(FAMILY, 300), dict[int, tuple[list[int], dict[str, np.ndarray]]]()
    with (
        engine(FAMILY, name, {**LITTLE, **RESIDUAL}[name], cache_type="f16", n_slots=2) as loaded,
        loaded.session() as session,
        loaded.session() as copy,
    ):
        for turn in range(7):
            base = draw.choice([ids for ids, _ in kept.values()]) if kept else []
            asked = base[: len(base) if turn % 2 else draw.randint(0, len(base))]
            asked = [*asked, *draw.sample(vocabulary, 150 if not turn else draw.randint(4, 60))]
            session.truncate(0)
            if prefix := cache.find(asked, len(asked) - 3):
                ids, arrays = kept[prefix.n_held]
                session.load(prefix)
                load_whole(loaded, copy, ids, arrays, len(prefix.ids))
                assert copy.ids == session.ids
                new = asked[len(session.ids) :]
                np.testing.assert_array_equal(take_in(session, new), take_in(copy, new))
            else:
                take_in(session, asked)
            assert session.ids == asked
            session.keep_in(cache)
            check_bytes(cache)
            kept[len(asked)] = asked, whole(loaded, session)
            kept = {node.stop: kept[node.stop] for node in cache._ends}
            assert len(kept) == len(cache)
        base, held = vocabulary[:200], []
        for tail in ([1] * 30, [2] * 30):
            prefix = cache.find([*base, *tail], 200)
            if not held or not prefix:
                session.truncate(0)
                take_in(session, base)
            else:
                session.load(prefix)
            take_in(session, tail)
            session.keep_in(cache)
            held.append(cache.n_bytes)
        check_bytes(cache)
        assert held[1] - held[0] < sum(array.nbytes for array in whole(loaded, session).values())
