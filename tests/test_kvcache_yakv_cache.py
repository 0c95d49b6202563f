"""YAKV's cache of selected rows changes what moves, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_kvcache_contract import LITTLE, decoded, engine, ids_of, scripted

import yakvrt
from yakvrt.kernels.yakv_fetch import directory_bytes
from yakvrt.kvcache import open_method

FEW = LITTLE["yakv"]


def run(loaded: yakvrt.Engine, family: str) -> np.ndarray:
    """A script of its own, then the slot again with another prompt, a cut behind which other tokens are
    decoded until their blocks leave the window, and a cut to almost nothing.
    """
    first = scripted(loaded, family)
    ids = ids_of(family, 300)[::-1]
    with loaded.session() as session:
        found = [session.prefill(ids[:200]), *decoded(session, ids[200:270])]
        session.truncate(140)
        found += decoded(session, ids[100:260])
        session.truncate(3)
        found += [session.prefill(ids[:170]), *decoded(session, ids[170:176])]
    return np.concatenate([first, np.array(found)])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("places", "k_bits"), [("1", "8"), ("1.3", "8"), ("3", "8"), ("64", "8"), ("1.3", "r3")]
)
def test_logits_are_the_same_bits(places: str, k_bits: str, threads: int) -> None:
    family, found, stats = "qwen3", [], []
    for cache, n in (("0", 1), (places, threads)):
        args = {**FEW, "k_bits": k_bits, "slot_cache": cache}
        with engine(family, "yakv", args, threads=n) as loaded:
            found.append(run(loaded, family))
            with loaded.session() as session:
                stats.append(session.kv)
    np.testing.assert_array_equal(*found)
    off, on = stats
    assert off["hit_rate"] == 0
    assert off["moved_bytes"] == off["gross_bytes"] == on["gross_bytes"]
    assert 0 < on["hit_rate"] < 1
    assert on["moved_bytes"] == round(on["gross_bytes"] * (1 - on["hit_rate"]))


def test_more_places_hit_more_often() -> None:
    rates = []
    for places in ("1", "2", "64"):
        with engine("llama3", "yakv", {**FEW, "slot_cache": places}) as loaded:
            run(loaded, "llama3")
            with loaded.session() as session:
                rates.append(session.kv["hit_rate"])
    assert rates == sorted(rates)
    assert rates[0] < rates[2]


@pytest.mark.parametrize("way", ["copied", "restored"])
def test_a_slot_that_gets_other_content_forgets_its_rows(way: str, tmp_path: Path) -> None:
    """All places are filled by the content that goes, whose rows have the numbers of those that come."""
    ids, new = ids_of("llama3", 300), ids_of("llama3", 340)[300:]
    loaded = engine("llama3", "yakv", {**FEW, "slot_cache": "64"}, n_slots=2)
    with loaded, loaded.session() as source, loaded.session() as target:
        source.prefill(ids[:250])
        target.prefill(ids[::-1][:250])
        decoded(target, new)
        before = target.kv
        if way == "copied":
            target.copy_from(source)
        else:
            source.save(tmp_path / "slot")
            target.restore(tmp_path / "slot")
        found, expected = decoded(target, new), decoded(source, new)
        asked, moved = (target.kv[name] - before[name] for name in ("gross_bytes", "moved_bytes"))
        assert before["hit_rate"] > 0  # the cache is used before
        assert moved < asked  # and after
    np.testing.assert_array_equal(found, expected)


def test_the_plan_counts_the_cache() -> None:
    with engine("llama3", "yakv", FEW) as loaded:
        config = loaded.config
    args = {"sparse_budget": "300", "min_seqlen_to_prune": "0", "k_bits": "8", "v_bits": "8"}
    method, off = open_method("yakv", args)
    _, on = open_method("yakv", {**args, "slot_cache": "2.5"})
    heads, row = config.n_layers * config.n_kv_heads, 2 * config.head_dim + 4
    without, with_cache = (method.pools(config, each, "f16", 8004) for each in (off, on))
    expected = heads * (750 * row + directory_bytes(750, 8000))
    assert with_cache.slot_bytes - without.slot_bytes == with_cache.device["cache of rows"] == expected
    assert "cache of rows" not in without.device
    # all rows are selected up to min_seqlen_to_prune tokens, and never more places than rows are taken
    assert open_method("yakv", {"slot_cache": "1"})[1].cache_places(8004) == 384
    assert open_method("yakv", {"slot_cache": "17"})[1].cache_places(131072) == 65536  # what a GPU can mark
    assert on.cache_places(600) == 512


@pytest.mark.parametrize("value", ["-1", "0.5", "65", "nan", "inf"])
def test_wrong_sizes(value: str) -> None:
    with pytest.raises(ValueError, match=f"slot_cache={value} is out of range; give 0 for none, or 1 to 64"):
        open_method("yakv", {"slot_cache": value})
