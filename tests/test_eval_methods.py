"""Several KV methods over one prefill: each does what it does alone, within memory and at equal bytes."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from test_kvcache_contract import LITTLE, MODULES, engine, ids_of, method_of

import yakvrt
from yakvrt.config import ModelConfig
from yakvrt.eval.fidelity import logit_scores
from yakvrt.eval.method_slots import N_SLOTS, DecodeSession, MethodSlots
from yakvrt.eval.method_specs import DEFAULT_METHODS, FULL, MethodSpec, method_specs
from yakvrt.eval.own_engine import OwnEngine, SampleTokens
from yakvrt.eval.sample import Sample
from yakvrt.eval.shared_prompt import SharedPrompt
from yakvrt.kl_divergence import log_softmax
from yakvrt.kvcache import open_method
from yakvrt.kvcache.equal_bytes import comparison_bytes, equal_budget
from yakvrt.kvcache.method_label import name_and_args
from yakvrt.sampler import SamplingParams
from yakvrt.sequence import Sequence

FAMILY, N_PROMPT, N_NEW, CTX = "qwen3", 200, 10, 384
SMOL = ModelConfig(
    **{"family": "llama", "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "head_dim": 64, "hidden_dim": 576},
    **{"ffn_dim": 1536, "vocab_size": 49152, "context_len": 8192, "norm_eps": 1e-5, "rope_theta": 1e5},
)  # type: ignore[arg-type]


def label_of(name: str) -> str:
    parameters = ";".join(f"{key}={value}" for key, value in LITTLE[name].items())
    return f"{method_of(name)}:{parameters}" if parameters else method_of(name)


def alone(name: str, prompt: list[int], gold: list[int]) -> tuple[list[np.ndarray], list[int]]:
    """Log-probabilities on the gold answer, and the greedy answer, of an engine with this method only."""
    with engine(FAMILY, name, LITTLE[name], ctx_size=CTX) as loaded:
        with loaded.session() as session:
            session.prefill(prompt[:-1])
            forced = [
                log_softmax(session.decode(token).astype(np.float64)) for token in [prompt[-1], *gold[:-1]]
            ]
        with loaded.session() as session:
            session.prefill(prompt[:-1])
            ids, logits = list[int](), session.decode(prompt[-1])
            while len(ids) < N_NEW:
                ids.append(int(logits.argmax()))
                logits = session.decode(ids[-1])
    return forced, ids


def test_methods_over_one_prefill_do_what_they_do_alone() -> None:
    found = ids_of(FAMILY, N_PROMPT + 80)
    prompt, gold = found[:N_PROMPT], found[N_PROMPT:]  # longer than a block, so that a cut would lose rows
    with engine(FAMILY, "full", {}, ctx_size=CTX) as loaded:
        setting = loaded.runner.setting(N_SLOTS, CTX, "f32")
        specs = [MethodSpec(label_of(name), None) for name in MODULES]
        members = [MethodSlots.build(spec, setting, loaded.runner, N_PROMPT - 1) for spec in specs]
        shared = SharedPrompt([member.method for member in members])
        slot = shared.open(CTX)
        loaded.runner.over(shared).prefill(slot, 0, prompt[:-1])
        for name, member in zip(MODULES, members, strict=True):
            forced, ids = alone(name, prompt, gold)
            together = list(member.teacher_forced(slot, N_PROMPT - 1, [prompt[-1], *gold[:-1]]))
            np.testing.assert_array_equal(together, forced, err_msg=name)
            params = SamplingParams(temperature=0, max_tokens=N_NEW, ignore_eos=True)
            session = DecodeSession(member, slot, prompt[:-1], CTX)
            answer = Sequence(session, loaded.tokenizer, prompt, params)
            list(answer)
            assert answer.ids == ids, name


def test_a_shared_prompt_is_cut_to_what_all_methods_hold() -> None:
    class Forgetful:
        def __init__(self, at: int) -> None:
            self.held, self._at = 100, at

        def truncate(self, slot: int, n_held: int, n: int) -> int:
            assert n_held == self.held
            self.held = n // self._at * self._at
            return self.held

    methods: Any = [Forgetful(1), Forgetful(16), Forgetful(20)]
    assert SharedPrompt(methods).truncate(0, 100, 90) == 80
    assert [method.held for method in methods] == [80, 80, 80]


def test_a_methods_memory_goes_before_the_next_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []
    build = MethodSlots.build

    def kept(*given: Any) -> MethodSlots:
        member = build(*given)
        made.append(weakref.ref(member.method))
        return member

    monkeypatch.setattr(MethodSlots, "build", kept)
    with engine(FAMILY, "full", {}, ctx_size=64) as loaded:
        side = OwnEngine(loaded, "f32", 2, 0, 256)
        monkeypatch.setattr(side, "tokens", lambda sample: SampleTokens(ids_of(FAMILY, 90), [3, 4], 0))
        specs = method_specs(["shadowkv-equal", "quest-equal"], [0.25])
        found = [
            [method() is not None for method in made]
            for _ in side.readings(Sample("s", "", "", 0), specs, lambda what, share: None)
        ]
    assert found == [[True, True, True], [False, True, True], [False, False, True]]


def test_divergence_from_full_attention() -> None:
    full = [log_softmax(np.array(row)) for row in ([0.0, 1, 2], [5.0, 0, 0])]
    same = logit_scores(iter(full), full, [2, 1])
    assert (same["kl_mean"], same["same_top1"]) == (0, 1)
    rounded = [one.astype(np.float32) for one in full]
    assert 0 <= logit_scores(iter(full), rounded, [2, 1])["kl_mean"] < 1e-7
    assert same["nll"] == pytest.approx(-(full[0][2] + full[1][1]) / 2)
    flat = [log_softmax(np.zeros(3))] * 2
    entropies = [-(np.exp(one) * one).sum() for one in full]
    kl = [np.log(3) - entropy for entropy in entropies]
    other = logit_scores(iter(flat), full, [2, 1])
    assert other["kl_mean"] == pytest.approx(np.mean(kl))
    assert other["same_top1"] == 0.5


@pytest.mark.parametrize("share", [1 / 32, 1 / 8])
@pytest.mark.parametrize("label", DEFAULT_METHODS.split(","))
def test_budgets_buy_equal_bytes(label: str, share: float) -> None:
    n = 8192
    args = equal_budget(label, {}, SMOL, "f16", n, share)
    module, parameters = open_method(label, args)
    asked, allowed = module.step_bytes(SMOL, parameters, "f16", n).host, comparison_bytes(SMOL, n, share)
    if label == "full":
        assert (args, asked) == ({}, 0)
    else:
        assert 0.93 * allowed <= asked <= allowed


def test_a_budget_in_the_label_stays() -> None:
    specs = method_specs(["oracle:sparse_budget=0.5", "yakv", "full"], [0.03125, 0.25])
    assert [spec.key for spec in specs] == [
        ("full", None),
        ("oracle:sparse_budget=0.5", None),
        ("yakv", 0.03125),
        ("yakv", 0.25),
    ]
    assert specs[1].parameters(SMOL, "f16", 1000) == {"sparse_budget": "0.5"}
    with pytest.raises(ValueError, match=r"--budget 2 .* up to 1"):
        method_specs(["yakv"], [2])
    with pytest.raises(ValueError, match="write parameters as"):
        name_and_args("yakv:recent")


def test_methods_that_do_not_fit_together_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = SampleTokens(list(range(2, 102)), [5, 6], 20)
    specs = method_specs(["oracle", "quest"], [0.25])
    with engine(FAMILY, "full", {}, ctx_size=16) as loaded:
        own = OwnEngine(loaded, "f32", 8, None, 0)
        sizes = [own._bytes(spec, tokens) for spec in specs]
        two = sum(sum(size) for size in sizes[:2]) + max(slot for slot, _ in sizes)
        spare = 4 * (loaded.config.hidden_dim * tokens.n_tokens + 2 * loaded.config.vocab_size) + (128 << 20)
        groups = {}
        for free in (1 << 40, two + spare, 1000):
            monkeypatch.setattr(yakvrt.Engine, "free_bytes", free)
            if free == 1000:
                with pytest.raises(
                    RuntimeError, match=r"full takes .* GB for a prompt of 100 tokens, .* lower"
                ):
                    list(own._passes(tokens, specs))
            else:
                groups[free] = [len(group) for group in own._passes(tokens, specs)]
        assert groups == {1 << 40: [3], two + spare: [2, 1]}
        assert specs[0] == FULL
