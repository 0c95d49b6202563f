"""Grammars: whatever a model wants to say, its answer fits; nothing hostile takes long."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_kvcache_contract import engine
from tiny_tokenizers import SPECIAL, byte_level, sentencepiece

from yakvrt import constraint, grammar_check
from yakvrt.cli_parsing import parse
from yakvrt.generate import build_parser
from yakvrt.generation import Generation
from yakvrt.grammar import MAX_CHARS, Grammar
from yakvrt.no_tokenizer import NoTokenizer
from yakvrt.sampler import SamplingParams, largest_first
from yakvrt.scheduler import Scheduler
from yakvrt.tokenizer import Tokenizer, tokenizer_from_gguf

RNG = np.random.default_rng()
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "n": {"type": "integer", "minimum": -5, "maximum": 5},
        "kind": {"enum": ["a", "é漢", None]},
        "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "n", "kind", "list"],
    "additionalProperties": False,
}
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.5, "top_k": 5, "repeat_penalty": 1.3},
    {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0},
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    directory = tmp_path_factory.mktemp("tokenizers")
    return {"byte-level": byte_level(directory), "sentencepiece": sentencepiece(directory)}


def fits(value: Any) -> bool:
    """What SCHEMA says."""
    return (
        list(value) == ["name", "n", "kind", "list"]
        and isinstance(value["name"], str)
        and len(value["name"]) <= 8
        and value["n"] in range(-5, 6)
        and value["kind"] in ("a", "é漢", None)
        and 1 <= len(value["list"]) <= 3
        and all(type(item) is bool for item in value["list"])
    )


def answer(
    tokenizer: Tokenizer, params: SamplingParams, likely: tuple[int, ...] = (), more_rows: int = 0
) -> tuple[str, Generation]:
    """The answer of a model that likes any token as much as any other, but some more."""
    generation = Generation(tokenizer, [1], params, 4096)
    text = ""
    while generation.finish_reason is None:
        logits = RNG.normal(size=tokenizer.vocab_size + more_rows).astype(np.float32)
        logits[list(likely)] += 100
        text += generation.push(logits)
    return text, generation


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("sampling", SAMPLING, ids=["greedy", "top-k", "all"])
def test_answers_fit_their_schema(
    tokenizers: dict[str, Tokenizer], kind: str, sampling: dict[str, Any]
) -> None:
    """Control tokens and rows without a token, which the model would rather choose, do not come."""
    tokenizer = tokenizers[kind]
    special = [token for text in SPECIAL for token in tokenizer.encode(text, add_special=False)]
    unused = range(tokenizer.vocab_size, tokenizer.vocab_size + 40)
    params = SamplingParams(grammar=Grammar.json_schema(SCHEMA), max_tokens=600, **sampling)
    for _ in range(5):
        text, generation = answer(tokenizer, params, (*special, *unused), more_rows=40)
        assert generation.finish_reason == "stop"
        assert fits(json.loads(text))
        assert not {*special, *unused}.intersection(generation.ids)
        assert text[0] == "{"
        assert text[-1] == "}"


def test_white_space_comes_to_an_end(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    likely = [tokenizer.encode(text, add_special=False)[0] for text in " \n\t\r{"]
    params = SamplingParams(grammar=Grammar.json_object(), temperature=0, max_tokens=60)
    text, _ = answer(tokenizer, params, tuple(likely))
    assert len(text[1:]) - len(text[1:].lstrip()) <= 22


def test_answers_of_a_large_vocabulary_fit(smollm2_path: Path) -> None:
    from gguf_tools.reader import GGUFFile

    with GGUFFile(smollm2_path) as file:
        tokenizer = tokenizer_from_gguf(file.metadata)
    for sampling in SAMPLING:
        text, _ = answer(tokenizer, SamplingParams(grammar=Grammar.json_schema(SCHEMA), **sampling))
        assert fits(json.loads(text))


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_forced_text_comes_in_the_models_own_tokens(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    text = '{"name": "get", "arguments"'
    params = SamplingParams(grammar=Grammar.gbnf(f"root ::= {json.dumps(text)}"))
    found, generation = answer(tokenizer, params)
    assert found == text
    after = tokenizer.encode("x", add_special=False)
    assert [*after, *generation.ids] == tokenizer.encode("x" + text, add_special=False)


def test_ends(tokenizers: dict[str, Tokenizer]) -> None:
    """Where a text may end, an end of text may come; where it must, none is needed."""
    tokenizer = tokenizers["byte-level"]
    end = min(tokenizer.eos_ids)
    some = Grammar.regex("[ab]{3,}")
    text, generation = answer(tokenizer, SamplingParams(grammar=some), (end,))
    assert re.fullmatch("[ab]{3,4}", text)  # the third may come within "ab"
    assert generation.ids[-1] in tokenizer.eos_ids
    assert generation.finish_reason == "stop"
    text, generation = answer(tokenizer, SamplingParams(grammar=some, max_tokens=9, ignore_eos=True), (end,))
    assert generation.finish_reason == "length"
    for ignore_eos in (False, True):
        params = SamplingParams(grammar=Grammar.regex("[ab]{3}"), ignore_eos=ignore_eos, max_tokens=9)
        text, generation = answer(tokenizer, params, (end,))
        assert (len(text), generation.finish_reason) == (3, "stop")
        assert not tokenizer.eos_ids.intersection(generation.ids)
    text, generation = answer(tokenizer, SamplingParams(grammar=some, stop=("aa", "b")))
    assert (text.replace("a", ""), generation.finish_reason) == ("", "stop")


def test_a_constraint_tells_where_it_stands(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    stands = tokenizer.constraint(Grammar.regex("[ab]{3,}"))
    (a,), (c,) = tokenizer.encode("a", add_special=False), tokenizer.encode("c", add_special=False)
    for complete in (False, False, False, True, True):
        allowed = stands.allowed(tokenizer.vocab_size)
        assert [allowed[end] for end in tokenizer.eos_ids] == [complete] * len(tokenizer.eos_ids)
        assert allowed[a]
        assert not allowed[c]
        stands.accept(a)
    assert not stands.is_over
    with pytest.raises(ValueError, match="the grammar fails"):
        stands.accept(c)


def test_log_probabilities_are_those_of_the_model(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    logits = RNG.normal(size=tokenizer.vocab_size).astype(np.float32)
    generation = Generation(
        tokenizer, [1], SamplingParams(grammar=Grammar.regex("[ab]{3,}"), logprobs=1), 4096
    )
    generation.push(logits)
    assert generation.logprobs is not None
    total = np.log(np.exp(logits.astype(np.float64)).sum())
    assert generation.logprobs[0].logprob == pytest.approx(logits[generation.ids[0]] - total, abs=1e-5)
    assert generation.logprobs[0].top[0][0] == logits.argmax()


def test_largest_first_of_few_possible_tokens() -> None:
    logits = np.full(50_000, -np.inf, np.float32)
    for n in (0, 1, 30, 300):
        logits[RNG.permutation(50_000)[:n]] = RNG.normal(size=n)
        for k in (1, 40, 100):
            expected = np.argsort(-logits, kind="stable")[:k]
            assert largest_first(logits, k).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Grammar.json_schema({"type": "nothing"}),
            r"the JSON schema does not compile \(Invalid type",
        ),
        (
            lambda: Grammar.json_schema({"$ref": "#"}),
            r"compile \(no text fits it, as when it refers to itself",
        ),
        (lambda: Grammar.gbnf('root ::= "a'), r"the grammar \(gbnf\) does not compile"),
        (lambda: Grammar.gbnf("root ::= other"), r"Rule 'other' not found"),
        (lambda: Grammar.regex("(a"), r"the grammar \(regex\) does not compile"),
        # overflows llguidance's stack
        (lambda: Grammar.gbnf(chain(4000)), "takes too much memory or nests too deeply to compile; simplify"),
    ],
    ids=["schema", "reference", "gbnf", "rule", "regex", "chain"],
)
def test_what_does_not_compile_is_one_sentence(
    tokenizers: dict[str, Tokenizer], make: Callable[[], Grammar], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tokenizers["byte-level"].constraint(make())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def chain(n: int) -> str:
    rules = [f"A{i}: A{i + 1}" for i in range(n)]
    return "\n".join(["%llguidance {}", "start: A0", *rules, f'A{n}: "x"'])


def test_compiling_has_limits(tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    doubling = Grammar.json_schema(
        {"allOf": [{"type": "string", "pattern": f"a{i}.{{5}}"} for i in range(24)]}
    )
    monkeypatch.setattr(grammar_check, "MAX_CHECK_S", 1)
    started = time.monotonic()
    with pytest.raises(ValueError, match="the JSON schema takes more than 1 s to compile; simplify it"):
        tokenizers["byte-level"].constraint(doubling)
    assert time.monotonic() - started < 20


def test_a_check_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when Python has no more memory in its thread."""
    silent = subprocess.CompletedProcess([], 0, stdout="", stderr="MemoryError")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: silent)
    with pytest.raises(ValueError, match="takes too much memory"):
        grammar_check.checked_source(Grammar.regex("a"))


def test_few_grammars_compile_at_a_time(
    tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work: list[Grammar] = []
    most = 0

    def check(grammar: Grammar) -> str:
        nonlocal most
        at_work.append(grammar)
        most = max(most, len(at_work))
        time.sleep(0.02)
        at_work.remove(grammar)
        return "start: /a/"

    monkeypatch.setattr(constraint, "checked_source", check)
    grammars = [Grammar.regex(f"few{i}") for i in range(3 * constraint.MAX_CHECKS)]
    with ThreadPoolExecutor(len(grammars)) as pool:
        list(pool.map(tokenizers["byte-level"].constraint, grammars))
    assert 1 < most <= constraint.MAX_CHECKS


def push_all(generation: Generation) -> None:
    while generation.finish_reason is None:
        generation.push(RNG.normal(size=500).astype(np.float32))


def test_an_answer_has_limits_of_its_own(
    tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constraint, "MAX_LEXER_STATES", 1000)
    params = SamplingParams(grammar=Grammar.regex("(.*a.{30}b.*)|(.*c.{25}d.{25})"), max_tokens=500)
    for _ in range(2):  # what one has used up, another has not
        generation = Generation(tokenizers["byte-level"], [1], params, 4096)
        with pytest.raises(
            ValueError, match=r"the grammar fails \(lexer error: too many states.*; simplify it"
        ):
            push_all(generation)
        assert len(generation.ids) > 10


def test_what_is_no_grammar_is_refused_when_made() -> None:
    with pytest.raises(ValueError, match=r"the grammar \(regex\) is empty"):
        Grammar.regex(" ")
    with pytest.raises(ValueError, match=f"has {MAX_CHARS + 1} characters; shorten it to {MAX_CHARS}"):
        Grammar.gbnf("x" * (MAX_CHARS + 1))
    with pytest.raises(ValueError, match="the JSON schema is not valid JSON"):
        Grammar.json_schema('{"type": ')
    with pytest.raises(ValueError, match="the JSON schema is not valid JSON"):
        Grammar.json_schema("[" * 30_000)
    with pytest.raises(ValueError, match="the JSON schema is no JSON object"):
        Grammar.json_schema("true")
    with pytest.raises(ValueError, match="the JSON schema cannot be written as JSON"):
        Grammar.json_schema({"const": object()})
    with pytest.raises(ValueError, match="grammar is no Grammar"):
        SamplingParams(grammar="root ::= x")  # type: ignore[arg-type]


def test_without_the_package_or_a_tokenizer(
    tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="a grammar is about text"):
        Generation(NoTokenizer(frozenset(), 8), [1], SamplingParams(grammar=Grammar.json_object()), 64)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(
        RuntimeError, match=r"take llguidance; install it with pip install 'yakvrt\[grammar\]'"
    ):
        tokenizers["byte-level"].constraint(Grammar.json_object())


def test_a_scheduler_answers_with_and_without(tokenizers: dict[str, Tokenizer]) -> None:
    """A model with random weights; what does not compile is refused before it waits."""
    grammar = Grammar.json_schema(SCHEMA)
    with engine("qwen3", "full", {}, n_slots=3) as loaded:
        loaded.tokenizer = tokenizers["byte-level"]
        with Scheduler(loaded) as scheduler:
            with pytest.raises(ValueError, match=r"the grammar \(regex\) does not compile"):
                scheduler.submit([1, 2], SamplingParams(grammar=Grammar.regex("(")))
            free = scheduler.submit([3, 2, 1], SamplingParams(temperature=0, max_tokens=20))
            bound = [
                scheduler.submit([i + 1, 2, 3], SamplingParams(grammar=grammar, seed=i, max_tokens=300))
                for i in range(4)
            ]
            texts = [request.result(60) for request in bound]
            free.result(60)
        assert all(fits(json.loads(text)) for text in texts)
        assert [request.finish_reason for request in bound] == ["stop"] * 4
        with loaded.generate([3, 2, 1], temperature=0, max_tokens=20) as alone:
            assert list(alone)
            assert alone.ids == free.ids


def test_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def given(*argv: str) -> Grammar | None:
        return parse(build_parser(), ["-p", "x", *argv]).grammar  # type: ignore[no-any-return]

    file = tmp_path / "grammar"
    file.write_text('{"type": "object"}\n')
    schema = Grammar("json_schema", '{"type": "object"}')
    assert given() is None
    assert given("-j", schema.text) == given("--json-schema", schema.text) == schema
    assert given("-jf", str(file)) == given("--json-schema-file", str(file)) == schema
    assert given("--grammar", 'root ::= "a"') == Grammar.gbnf('root ::= "a"')
    assert given("--grammar-file", str(file)) == Grammar.gbnf(schema.text)
    for argv, message in (
        (("-j", "{"), "the JSON schema is not valid JSON"),
        (("-jf", str(tmp_path / "none")), "cannot be read"),
        (("-j", "{}", "--grammar", "x"), "not allowed with"),
    ):
        with pytest.raises(SystemExit):
            given(*argv)
        assert message in capsys.readouterr().err
