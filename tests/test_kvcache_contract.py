"""What every KV method must do, whatever it keeps and chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from golden_values import tiny_cases, tiny_dir
from kv_slots import KvSlots

import yakvrt
from yakvrt.kvcache import METHODS, open_method

# Parameters under which a method reads every row, and how far its logits may then be from full attention's,
# as a share of their size: what it stores other than exactly, which the tiny models' random layers amplify.
EVERYTHING: Mapping[str, tuple[Mapping[str, str], float]] = {
    "full": ({}, 0),
    "quest": ({"sparse_budget": "4096", "dense_layers": "1"}, 1e-5),
    "arkvale": ({"sparse_budget": "4096", "page": "16", "dense_layers": "1"}, 1e-5),
    "shadowkv": ({"sparse_budget": "4096", "rank": "4096", "outliers": "32"}, 0.02),
    "lrqk": ({"sparse_budget": "4096"}, 1e-5),
    "infinigen": ({"sparse_budget": "4096", "alpha": "1e6", "dense_layers": "1"}, 1e-5),
    "oracle": ({"sparse_budget": "4096"}, 1e-5),
    "yakv": ({"sparse_budget": "4096", "k_bits": "16", "v_bits": "16"}, 0.02),
    "yakv-paper": ({"sparse_budget": "4096"}, 0.6),
    "yakv+cache": ({"sparse_budget": "4096", "k_bits": "16", "v_bits": "16", "slot_cache": "1"}, 0.02),
}
# Parameters under which a method chooses few of some hundred rows.
LITTLE: Mapping[str, Mapping[str, str]] = {
    "full": {},
    "quest": {"sparse_budget": "32", "min_pages": "1", "window": "2", "dense_layers": "0"},
    "arkvale": {"sparse_budget": "32", "cache_budget": "0", "page": "16", "dense_layers": "0"},
    "shadowkv": {"sparse_budget": "32", "outliers": "16"},
    "lrqk": {"sparse_budget": "32"},
    "infinigen": {"sparse_budget": "32", "alpha": "1e6", "dense_layers": "0"},
    "oracle": {"sparse_budget": "32"},
    "yakv": {"sparse_budget": "32", "min_seqlen_to_prune": "0", "k_bits": "8", "v_bits": "8"},
    "yakv-paper": {"sparse_budget": "32"},
    "yakv+cache": {
        **{"sparse_budget": "32", "min_seqlen_to_prune": "0", "slot_cache": "1.5"},
        **{"k_bits": "8", "v_bits": "8"},
    },
}
BUDGET = 32
# Positions that are read in every step, of n: counted from the start, or from the end where negative.
ALWAYS: Mapping[str, tuple[int, ...]] = {
    "full": (0, 100, -1),
    "quest": (-1, -16),
    "arkvale": (0, 31, -1, -16),
    "shadowkv": (-1, -32),
    "lrqk": (-1, -15),
    "infinigen": (),
    "oracle": (0, 3, -1, -62),
    "yakv": (0, 3, -1, -64),
    "yakv-paper": (-1, -64),
    "yakv+cache": (0, 3, -1, -64),
}
# Parameters under which windows, sinks and outliers are larger than any sequence of the tests; InfiniGen has
# none.
WIDE: Mapping[str, Mapping[str, str]] = {
    "full": {},
    "quest": {"window": "1024", "dense_layers": "0"},
    "arkvale": {"sinks": "1024", "window": "1024", "dense_layers": "0"},
    "shadowkv": {"local": "4096", "outliers": "4096"},
    "lrqk": {"recent": "4096"},
    "oracle": {"sinks": "4096", "recent": "4096"},
    "yakv": {"prefix_budget": "1024", "recent": "4096"},
    "yakv-paper": {"prefix_budget": "4096", "recent": "4096"},
}
# How far a row that is read may be from the one that was stored, as a share of its size.
ROW_ERROR: Mapping[str, float] = dict.fromkeys(EVERYTHING, 0.01) | {"yakv-paper": 0.15}
MODULES = tuple(EVERYTHING)  # a method, or a method with something on
TINY, TINY_QWEN3 = (8, 2, 16), (8, 2, 32)  # heads of the tiny models, whose kernels are compiled anyway


def method_of(name: str) -> str:
    return name.partition("+")[0]


def engine(family: str, kv: str, args: Mapping[str, str], **settings: object) -> yakvrt.Engine:
    values = {"dtype": "f32", "cache_type": "f32", "ctx_size": 384, "ubatch_size": 64, "threads": 1}
    return yakvrt.load(str(tiny_dir(family)), kv=method_of(kv), kv_args=args, **{**values, **settings})  # type: ignore[arg-type]


def ids_of(family: str, n: int) -> list[int]:
    return tiny_cases(family)[3].ids[:n]


def test_every_module_is_under_contract() -> None:
    assert set(MODULES) == set(LITTLE) == set(ALWAYS)
    assert {METHODS[method_of(name)].module for name in MODULES} == {
        preset.module for preset in METHODS.values()
    }


def scripted(loaded: yakvrt.Engine, family: str) -> np.ndarray:
    """Logits of prompts, decode steps, a cut and a further prompt."""
    ids = ids_of(family, 260)
    with loaded.session() as session:
        session.prefill(ids[:130])
        found = [session.decode(token) for token in ids[130:150]]
        found.append(session.prefill(ids[150:191]))
        found += [session.decode(token) for token in ids[191:200]]
        session.truncate(100)  # a method may forget more
        held = len(session.ids)
        found.append(session.prefill(ids[held:121]))
        found += [session.decode(token) for token in ids[121:126]]
    return np.array(found)


def relative(found: np.ndarray, full: np.ndarray) -> np.ndarray:
    """How far each row is from the full one's, as a share of its size."""
    difference: np.ndarray = np.linalg.norm(found - full, axis=-1) / np.linalg.norm(full, axis=-1)
    return difference


@pytest.fixture(scope="module")
def full_logits() -> Mapping[str, np.ndarray]:
    found = {}
    for family in ("llama3", "qwen2", "qwen3"):
        with engine(family, "full", {}) as loaded:
            found[family] = scripted(loaded, family)
    return found


@pytest.mark.parametrize("family", ["llama3", "qwen2", "qwen3"])
@pytest.mark.parametrize("name", MODULES)
def test_a_budget_of_everything_is_full_attention(
    name: str, family: str, full_logits: Mapping[str, np.ndarray]
) -> None:
    args, tolerance = EVERYTHING[name]
    with engine(family, name, args) as loaded:
        difference = relative(scripted(loaded, family), full_logits[family])
    assert difference.max() <= tolerance, difference


@pytest.mark.parametrize(
    ("name", "kind"),
    [  # YAKV's kernels are tested with rows of bf16 by themselves
        (name, kind)
        for name in MODULES
        for kind in ("f16", "bf16")
        if kind == "f16" or method_of(name) != "yakv"
    ],
)
def test_rows_of_16_bits(name: str, kind: str) -> None:
    found = []
    for kv, args in (("full", {}), (name, EVERYTHING[name][0])):
        with engine("qwen3", kv, args, cache_type=kind) as loaded:
            found.append(scripted(loaded, "qwen3"))
    assert relative(found[1], found[0]).max() <= max(EVERYTHING[name][1], 1e-3)


def activations(rng: np.random.Generator, n: int, slots: KvSlots) -> tuple[np.ndarray, ...]:
    config = slots.config
    q = rng.standard_normal((n, config.n_heads, config.head_dim), np.float32)
    k, v = rng.standard_normal((2, n, config.n_kv_heads, config.head_dim), np.float32)
    return 0.1 * q, k, v


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Full attention of one query. Shapes: q [Hq, D], k and v [n, Hk, D] -> [Hq, D]."""
    group = len(q) // k.shape[1]
    k, v = (np.repeat(rows, group, axis=1).astype(np.float64) for rows in (k, v))
    scores = np.einsum("hd,nhd->hn", q, k) / q.shape[1] ** 0.5
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    out: np.ndarray = np.einsum("hn,nhd->hd", odds / odds.sum(axis=1, keepdims=True), v)
    return out


def sparse(args: Mapping[str, str]) -> Mapping[str, str]:
    """The only layer of KvSlots is not a dense one."""
    return {**args, "dense_layers": "0"} if "dense_layers" in args else args


def outputs(
    name: str, args: Mapping[str, str], n: int, n_new: int, size: float = 1
) -> tuple[np.ndarray, ...]:
    """What a method gives in the steps behind a prompt of n tokens, and what full attention gives."""
    with KvSlots(method_of(name), sparse(args), heads=TINY_QWEN3) as slots:
        q, k, v = activations(np.random.default_rng(n), n + n_new, slots)
        q, slot = 10 * size * q, slots.kv.open(512)
        if n:
            slots.prefill(slot, 0, q[:n], k[:n], v[:n])
        steps = range(n, n + n_new)
        found = [slots.decode(slot, i, q[i], k[i], v[i]).reshape(-1) for i in steps]
        return np.array(found), np.array([exact(q[i], k[: i + 1], v[: i + 1]).reshape(-1) for i in steps])


@pytest.mark.parametrize("n", [1, 257, 448])
@pytest.mark.parametrize("name", MODULES)
def test_attention_to_everything_is_exact_up_to_what_rows_lose(name: str, n: int) -> None:
    found, full = outputs(name, EVERYTHING[name][0], n, 20)
    largest = ROW_ERROR[name] if EVERYTHING[name][1] > 1e-5 else 1e-5
    assert relative(found, full).max() <= largest


@pytest.mark.parametrize("n", [0, 1, 130])
@pytest.mark.parametrize("name", WIDE)
def test_windows_above_the_length_are_full_attention(name: str, n: int) -> None:
    found, full = outputs(name, WIDE[name], n, 40)
    assert relative(found, full).max() <= 1e-5


@pytest.mark.parametrize("name", [name for name in MODULES if name != "full"])
def test_a_budget_of_1_is_all_of_the_prompt(name: str) -> None:
    """A budget up to 1 is a share, and more than the prompt has is no error."""
    args = EVERYTHING[name][0]
    share, _ = outputs(name, {**args, "sparse_budget": "1"}, 201, 1)
    tokens, _ = outputs(name, args, 201, 1)
    np.testing.assert_array_equal(share, tokens)


@pytest.mark.parametrize("story", ["one prompt", "a further prompt", "a cut"])
@pytest.mark.parametrize("name", MODULES)
def test_lasting_rows_are_always_read(name: str, story: str) -> None:
    """A row's value shows in the output only when the row is read."""
    n, n_new = 301, 3
    told = {"one prompt": n, "a further prompt": 150, "a cut": 411}[story]
    with KvSlots(method_of(name), LITTLE[name], heads=TINY) as slots:
        for place in (*ALWAYS[name], n + n_new):
            q, k, v = activations(np.random.default_rng(5), n + n_new + 1, slots)
            v[place] += 1e4
            slot = slots.kv.open(512)
            rows = [np.resize(each, (411, *each.shape[1:])) for each in (q, k, v)]
            slots.prefill(slot, 0, *(each[:told] for each in rows))
            held = slots.kv.truncate(slot, told, n) if told > n else told
            if held < n:
                slots.prefill(slot, held, *(each[held:n] for each in rows))
            for position in range(n, n + n_new + 1):
                out = slots.decode(slot, position, q[position], k[position], v[position])
            assert (np.abs(out) > 1).all(), place
            slots.kv.release(slot)


@pytest.mark.parametrize("heads", [TINY, (9, 3, 48), (8, 1, 80), (2, 2, 256)])
@pytest.mark.parametrize("name", MODULES)
def test_a_planted_key_is_found(name: str, heads: tuple[int, int, int]) -> None:
    n = 300
    with KvSlots(method_of(name), LITTLE[name], heads=heads) as slots:
        for place in (65, 131, 222):
            rng = np.random.default_rng(place)
            q, k, v = activations(rng, n + 2, slots)
            k *= 0.3
            aim = rng.standard_normal((heads[1], heads[2]), np.float32)
            aim *= heads[2] ** 0.5 / np.linalg.norm(aim, axis=-1, keepdims=True)
            value = 100 * rng.standard_normal(aim.shape, np.float32)
            k[place], v[place] = 5 * aim, value
            q[n:] = np.repeat(5 * aim, heads[0] // heads[1], axis=0)
            slot = slots.kv.open(512)
            slots.prefill(slot, 0, q[:n], k[:n], v[:n])
            for position in (n, n + 1):
                out = slots.decode(slot, position, q[position], k[position], v[position])
                expected = np.repeat(value, heads[0] // heads[1], axis=0)
                assert relative(out.reshape(-1), expected.reshape(-1)) < ROW_ERROR[name]
            slots.kv.release(slot)


@pytest.mark.parametrize("name", MODULES)
def test_a_planted_key_is_found_among_generated_tokens(name: str) -> None:
    n, place, last = 150, 163, 330
    with KvSlots(method_of(name), LITTLE[name], heads=TINY) as slots:
        rng = np.random.default_rng(2)
        q, k, v = activations(rng, last + 1, slots)
        aim = rng.standard_normal((2, 16), np.float32)
        aim *= 4 / np.linalg.norm(aim, axis=-1, keepdims=True)
        k *= 0.3
        k[place], v[place] = 5 * aim, 100 * rng.standard_normal((2, 16), np.float32)
        q[last] = np.repeat(5 * aim, 4, axis=0)
        slot = slots.kv.open(512)
        slots.prefill(slot, 0, q[:n], k[:n], v[:n])
        for position in range(n, last + 1):
            out = slots.decode(slot, position, q[position], k[position], v[position])
        assert relative(out.reshape(-1), np.repeat(v[place], 4, axis=0).reshape(-1)) < ROW_ERROR[name]


def decoded(session: yakvrt.Session, ids: list[int]) -> list[np.ndarray]:
    return [session.decode(token) for token in ids]


@pytest.mark.parametrize("name", MODULES)
def test_slots_do_not_mix_and_come_back(name: str) -> None:
    prompts = [ids_of("qwen2", 200)[:150], ids_of("qwen2", 260)[60:173]]
    new = ids_of("qwen2", 300)[260:270]
    with engine("qwen2", name, LITTLE[name], n_slots=2) as loaded:
        apart = []
        for prompt in prompts:
            with loaded.session() as session:
                apart.append([session.prefill(prompt), *decoded(session, new)])
        with loaded.session() as first, loaded.session() as second:
            with pytest.raises(RuntimeError, match="all 2 slots are in use"):
                loaded.session()
            mixed = [[first.prefill(prompts[0])], [second.prefill(prompts[1])]]
            for token in new:
                mixed[0].append(first.decode(token))
                mixed[1].append(second.decode(token))
        np.testing.assert_array_equal(mixed, apart)
        batch = loaded.runner.decode  # both slots in one step
        with loaded.session() as first, loaded.session() as second:
            for session, prompt in ((first, prompts[0]), (second, prompts[1])):
                session.prefill(prompt)
            for i, token in enumerate(new):
                positions = [len(prompt) + i for prompt in prompts]
                found = batch([first.slot, second.slot], positions, [token, token])
                expected = [apart[0][1 + i], apart[1][1 + i]]
                np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
        loaded.session().close()  # nothing leaked a slot


@pytest.mark.parametrize("n", [0, 1, BUDGET - 1, BUDGET])
@pytest.mark.parametrize("name", MODULES)
def test_up_to_the_budget_everything_is_read(name: str, n: int) -> None:
    found, full = outputs(name, LITTLE[name], n, 1)
    assert relative(found, full).max() < ROW_ERROR[name]


@pytest.mark.parametrize("n", [0, 1, BUDGET - 1, BUDGET, BUDGET + 1, 77])
@pytest.mark.parametrize("name", MODULES)
def test_lengths_around_the_budget(name: str, n: int) -> None:
    """Where all values are one row, so is any attention to rows that are there."""
    with KvSlots(method_of(name), LITTLE[name], heads=TINY) as slots:
        q, k, v = activations(np.random.default_rng(n), n + 20, slots)
        v[:] = v[0]
        expected = np.repeat(v[0], 4, axis=0).reshape(-1)
        slot = slots.kv.open(512)
        if n:
            slots.prefill(slot, 0, q[:n], k[:n], v[:n])
        for position in range(n, n + 20):
            out = slots.decode(slot, position, q[position], k[position], v[position])
            assert relative(out.reshape(-1), expected) < ROW_ERROR[name]
        assert slots.kv.truncate(slot, n + 20, 0) == 0
        slots.prefill(slot, 0, q[:5], k[:5], v[:5])
        out = slots.decode(slot, 5, q[5], k[5], v[5])
        assert relative(out.reshape(-1), expected) < ROW_ERROR[name]


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].module != "full"])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"sparse_budget": "0"}, "sparse_budget=0 is no budget"),
        ({"sparse_budget": "-3"}, "sparse_budget=-3 is no budget"),
        ({"sparse_budget": "1.5"}, "sparse_budget=1.5 is no budget"),
        ({"sparse_budget": "nan"}, "sparse_budget=nan is no budget"),
        ({"sparse_budget": "inf"}, "sparse_budget=inf is no budget"),
        ({"sparse_budget": "much"}, "sparse_budget=much is not a number"),
        ({"sparse_budgit": "3"}, "did you mean sparse_budget"),
    ],
)
def test_wrong_parameters(name: str, args: Mapping[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        open_method(name, args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("quest", {"page": "0"}, "page=0 is out of range; 1 to 1024"),
        ("quest", {"rule": "most"}, "rule='most' is not known; choose one of sum, max, mean"),
        ("arkvale", {"cache_budget": "-1"}, "cache_budget=-1 is no budget"),
        ("arkvale", {"window": "0"}, "window=0 is out of range"),
        ("shadowkv", {"rank": "0"}, "rank=0 is out of range"),
        ("shadowkv", {"chunk": "many"}, "chunk=many is not a whole number"),
        ("lrqk", {"init": "zeros"}, "init='zeros' is not known"),
        ("lrqk", {"split_budget": "maybe"}, "split_budget=maybe is neither on nor off"),
        ("infinigen", {"partial": "2"}, "partial=2 is out of range"),
        ("oracle", {"recent": "0"}, "recent=0 is out of range"),
        ("yakv", {"recent": "100"}, "recent=100 is not a multiple of 64"),
        ("yakv", {"k_bits": "5"}, "k_bits=5 is not known; choose one of 3, 4, 8, 16, r3"),
        ("yakv", {"v_bits": "r3"}, "v_bits=r3 is not known; choose one of 3, 4, 8, 16$"),
        ("yakv-paper", {"recent": "-1"}, "recent=-1 is out of range; 0 to"),
        ("yakv-paper", {"prefix_budget": "0.1"}, "prefix_budget=0.1 is not a whole number"),
        ("yakv-paper", {"rule": "best"}, "rule='best' is not known; choose one of sum, max, mean"),
        ("nothing", {}, "KV method 'nothing' is not known; choose one of full"),
    ],
)
def test_other_wrong_parameters(name: str, args: Mapping[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_method(name, args)


@pytest.mark.parametrize("name", [name for name in METHODS if not name.endswith("-equal")])
@pytest.mark.parametrize("head_dim", [144, 240])
def test_head_sizes_without_a_rotation(name: str, head_dim: int) -> None:
    """Refused by the plan and by the method where it needs one; others do not care."""
    method, parameters = open_method(name, {})
    with KvSlots("full", {}, heads=(2, 1, 144)) as slots:
        config = replace(slots.config, head_dim=head_dim)
    if not name.startswith("yakv"):
        assert method.pools(config, parameters, "f16", 512).slot_bytes > 0
        return
    with pytest.raises(
        ValueError, match=f"a head dimension of {head_dim} has no rotation: .*so choose"
    ) as error:
        method.pools(config, parameters, "f16", 512)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="has no rotation"):
        KvSlots(name, {}, heads=(2, 1, head_dim))
