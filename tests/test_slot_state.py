"""Slots that are copied, saved and restored go on bit for bit as those they come from, with every method."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_values import tiny_dir
from safetensors import safe_open
from test_kvcache_contract import LITTLE, MODULES, engine, ids_of, method_of

import yakvrt
from yakvrt.kvcache import METHODS

FAMILY = "qwen3"
Way = Callable[[yakvrt.Session, yakvrt.Session, Path], None]
SHARES = {  # budgets that are shares of the prompt, so that places depend on its length
    "arkvale": {
        "sparse_budget": "0.2",
        "cache_budget": "0.4",
        "page": "4",
        "dense_layers": "1",
        "window": "3",
    },
    "shadowkv": {"sparse_budget": "0.2", "outliers": "16", "chunk": "4", "local": "12"},
    "lrqk": {"sparse_budget": "0.2", "split_budget": "on", "rank": "8"},
    "infinigen": {"sparse_budget": "0.2", "dense_layers": "1"},
    "quest": {"sparse_budget": "0.2", "page": "4", "min_pages": "1", "dense_layers": "1"},
    "oracle": {"sparse_budget": "0.2", "recent": "8"},
    "yakv-paper": {"sparse_budget": "0.2", "prefix_budget": "3", "recent": "16"},
    "yakv+cache": {
        **{"sparse_budget": "0.2", "min_seqlen_to_prune": "0", "slot_cache": "1.5"},
        **{"k_bits": "8", "v_bits": "8"},
    },
}
KINDS = [(name, kind) for name in SHARES for kind in ("f32", "bf16")]
KINDS.remove(("yakv+cache", "bf16"))  # would compile kernels of its own


RESIDUAL = {
    "yakv+residual": {**LITTLE["yakv"], "k_bits": "r3"}
}  # too few dimensions in the contract's models


@pytest.fixture(scope="module", params=[*MODULES, *RESIDUAL])
def loaded(request: pytest.FixtureRequest) -> Iterator[yakvrt.Engine]:
    args = {**LITTLE, **RESIDUAL}[request.param]
    with engine(FAMILY, request.param, args, cache_type="f16", n_slots=3) as made:
        yield made


def history(session: yakvrt.Session, n: int) -> None:
    """n tokens: two prompts with decode steps behind each, fewer where n is small."""
    ids = ids_of(FAMILY, n)
    parts = [part for part in (ids[: n // 2], ids[n // 2 : n // 2 + 20], ids[n // 2 + 20 : n - 9]) if part]
    for i, part in enumerate(parts):
        if i == 1:
            for token in part:
                session.decode(token)
        else:
            session.prefill(part)
    for token in ids[len(session.ids) :]:
        session.decode(token)
    assert session.ids == ids


def goes_on(session: yakvrt.Session) -> Iterator[np.ndarray]:
    """Logits of decode steps, a further prompt, a cut and decode steps."""
    new = ids_of(FAMILY, 340)[250:]
    for token in new[:12]:
        yield session.decode(token)
    yield session.prefill(new[12:45])
    for token in new[45:50]:
        yield session.decode(token)
    session.truncate(len(session.ids) - 7)
    for token in new[50:55]:
        yield session.decode(token)


def copied(source: yakvrt.Session, target: yakvrt.Session, place: Path) -> None:
    target.copy_from(source)


def restored(source: yakvrt.Session, target: yakvrt.Session, place: Path) -> None:
    source.save(place)
    target.restore(place)


def test_every_method_is_under_test() -> None:
    modules = {preset.module for preset in METHODS.values()}
    assert modules == {METHODS[method_of(name)].module for name in MODULES}


@pytest.mark.parametrize("way", [copied, restored])
@pytest.mark.parametrize("n", [0, 1, 31, 77, 193])
def test_both_go_on_as_one_alone(loaded: yakvrt.Engine, tmp_path: Path, way: Way, n: int) -> None:
    with loaded.session() as alone:
        history(alone, n)
        expected = list(goes_on(alone))
    with loaded.session() as source, loaded.session() as target:
        history(source, n)
        history(target, 150)  # what the target held does not matter
        way(source, target, tmp_path / "slot")
        assert target.ids == source.ids
        both = [*zip(goes_on(source), goes_on(target), strict=True)]
    np.testing.assert_array_equal([pair[0] for pair in both], expected)
    np.testing.assert_array_equal([pair[1] for pair in both], expected)


@pytest.mark.parametrize("n", [0, 1, 60, 77, 150])
def test_a_prefix_is_the_source_after_a_cut(loaded: yakvrt.Engine, tmp_path: Path, n: int) -> None:
    """Copied, or saved after the cut."""
    with loaded.session() as source, loaded.session() as prefix, loaded.session() as saved:
        history(source, 193)
        prefix.copy_from(source, n)
        assert len(source.ids) == 193
        source.truncate(n)
        assert prefix.ids == source.ids == source.ids[:n]
        restored(source, saved, tmp_path / "slot")
        three = [*zip(goes_on(source), goes_on(prefix), goes_on(saved), strict=True)]
    np.testing.assert_array_equal([each[1] for each in three], [each[0] for each in three])
    np.testing.assert_array_equal([each[2] for each in three], [each[0] for each in three])


def test_an_interrupted_prompt_leaves_a_slot_that_can_be_saved(loaded: yakvrt.Engine, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with loaded.session() as source, loaded.session() as target:
        history(source, 120)
        with pytest.raises(KeyboardInterrupt):
            source.prefill(ids_of(FAMILY, 250)[120:], stop)
        restored(source, target, tmp_path / "slot")
        pairs = [*zip(goes_on(source), goes_on(target), strict=True)]
    np.testing.assert_array_equal([pair[1] for pair in pairs], [pair[0] for pair in pairs])


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_file_fits_slots_of_other_sizes(name: str, kind: str, tmp_path: Path) -> None:
    place = tmp_path / "slot"
    small, large = (engine(FAMILY, name, SHARES[name], cache_type=kind, ctx_size=n) for n in (300, 384))
    with small, small.session() as session:
        history(session, 201)
        session.truncate(190)
        session.decode(7)
        session.save(place)
        expected = list(goes_on(session))
    with large, large.session() as session:
        session.restore(place)
        np.testing.assert_array_equal(list(goes_on(session)), expected)


def test_views_are_of_what_is_held(loaded: yakvrt.Engine) -> None:
    """The verb promises shapes by the number of tokens, writable, and nothing else of the slot."""
    kv: Any = loaded.runner._kv
    with loaded.session() as session:
        sizes = []
        for n in (1, 65, 129, 257):
            session.truncate(0)
            session.prefill(ids_of(FAMILY, n))
            state = kv.state(session.slot, n)
            assert all(part.values.flags.writeable for part in state.values())
            sizes.append(sum(part.values.nbytes for part in state.values()))
        assert sizes == sorted(sizes)
        config = loaded.config
        row_bytes = 2 * config.n_layers * config.n_kv_heads * config.head_dim * 2
        if session.kv["method"] in ("full", "quest", "oracle", "infinigen"):
            assert row_bytes * 192 <= sizes[3] - sizes[1] < row_bytes * 192 * 1.5


def test_other_readers_open_the_file(loaded: yakvrt.Engine, tmp_path: Path) -> None:
    kv: Any = loaded.runner._kv
    with loaded.session() as session:
        history(session, 101)
        session.save(tmp_path / "slot.safetensors")
        state = kv.state(session.slot, 101)
        with safe_open(tmp_path / "slot.safetensors", "np") as file:
            assert set(file.keys()) == {"tokens"} | {f"kv.{name}" for name in state}
            assert file.get_tensor("tokens").tolist() == session.ids
            for name, part in state.items():
                np.testing.assert_array_equal(file.get_tensor(f"kv.{name}"), part.values, err_msg=name)
            metadata = file.metadata()
        assert metadata["n_tokens"] == "101"
        assert metadata["kv"] == session.kv["method"]
        assert metadata["model_name"] == tiny_dir(FAMILY).name


def test_sessions_that_cannot_be_copied(loaded: yakvrt.Engine) -> None:
    with loaded.session() as source, loaded.session() as target:
        history(source, 31)
        history(target, 20)
        for n in (-1, 32):
            with pytest.raises(ValueError, match=f"cannot copy {n} tokens of 31"):
                target.copy_from(source, n)
        other = engine(FAMILY, "full", {}, ctx_size=64)
        with other, other.session() as foreign, pytest.raises(ValueError, match="different engines"):
            target.copy_from(foreign)
        assert target.ids == ids_of(FAMILY, 20)
        source.copy_from(source, 30)
        assert len(source.ids) == 30
    with loaded.session() as target, pytest.raises(ValueError, match="session is closed"):
        target.copy_from(source)


def test_a_file_is_replaced_whole_and_private(loaded: yakvrt.Engine, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "slot")
    with loaded.session() as session:
        for n in (40, 12):
            session.truncate(0)
            history(session, n)
            session.save(tmp_path / "link")
            session.restore(tmp_path / "slot")
            assert len(session.ids) == n
    assert {path.name for path in tmp_path.iterdir()} == {"link", "slot"}
    assert (tmp_path / "link").is_symlink()
    assert os.stat(tmp_path / "slot").st_mode & 0o777 == 0o600
