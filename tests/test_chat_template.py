from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from yakvrt.chat_template import ChatTemplate

DATA = Path(__file__).parent / "data" / "tokenizer"
QWEN3 = (DATA / "qwen3_chat_template.jinja").read_text(encoding="utf-8")
GOLDEN = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))
HELLO = [{"role": "user", "content": "Hello!"}]
TOOL = {
    "type": "function",
    "function": {"name": "at", "description": "é <b> & 'x'", "parameters": {"a": [1]}},
}


def render(source: str, messages: list[dict[str, Any]] = HELLO, **kwargs: Any) -> str:
    return ChatTemplate({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"}).render(
        messages, **kwargs
    )


def stock_render(source: str, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    """Render with jinja's own sandbox, set up as transformers does."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    return environment.from_string(source).render(messages=messages, **kwargs)


@pytest.mark.parametrize("case", GOLDEN["qwen3"]["chats"], ids=lambda case: str(case["kwargs"]))
def test_qwen3_golden_renders(case: dict[str, Any]) -> None:
    text = render(
        QWEN3, case["messages"], add_generation_prompt=case["add_generation_prompt"], **case["kwargs"]
    )
    assert text == case["rendered"]


def test_tools_and_tool_calls_render_as_stock_jinja_does() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "When?"},
        {
            "role": "assistant",
            "content": "<think>\nhm\n</think>\n\nLook:",
            "tool_calls": [
                {"function": {"name": "at", "arguments": {"a": 1}}},
                {"name": "b", "arguments": "{}"},
            ],
        },
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "Four."},
    ]
    for add in (True, False):
        given = messages[: -1 if add else None]
        text = render(QWEN3, given, tools=[TOOL], add_generation_prompt=add)
        assert text == stock_render(QWEN3, given, tools=[TOOL], add_generation_prompt=add)
    assert "é <b> & 'x'" in text  # tojson does not escape for HTML


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m }}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% macro say(x, y=[1]) %}[{{ x ~ y }}]{{ varargs }}{% endmacro %}{{ say('a') }}{{ say(1, 2, 3) }}",
        "{{ messages[1:] | map(attribute='content') | join(', ') }}{{ messages[-1].role | upper | trim }}",
        "{{ {'a': [1, (2, none)]} }}{{ 'x' * 3 + 'y' }}{{ '%s-%d' % ('a', 3) }}{{ '{:>4}'.format('a') }}",
        "{{ 'a-b'.split('-') | list }}{{ 'aXb'.replace('X', '--') }}{{ ','.join(['a', 'b']) }}{{ 2 ** 8 }}",
        "{{ 'aaa' | replace('a', 'b', 2) }}{{ [3, 1] | sort | tojson(indent=2) }}{{ 'a\nb' | indent(2) }}",
        "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}{{ nothing }}{{ true }}",
        "{% set x %}{% for i in range(3) %}{{ i }}{% endfor %}{% endset %}{{ x | length }}{{ x }}",
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}",
        "{% for i in [1, [2, [3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
    ],
)
def test_ordinary_templates_render_as_stock_jinja_does(source: str) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "é\n"}]
    assert render(source, messages) == stock_render(source, messages)


def test_what_a_template_is_given() -> None:
    assert render("{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ add_generation_prompt }}") == (
        "<s></s>TrueTrue"
    )
    assert render("{{ enable_thinking }}{{ x.y }}", enable_thinking=False, x={"y": 3}) == "False3"
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")
    assert render("{% generation %}a{% endgeneration %}b") == "ab"


def test_tool_template_is_chosen_when_there_are_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
    assert template.render(HELLO) == "plain"
    assert template.render(HELLO, tools=[TOOL]) == "tools"
    assert ChatTemplate({"rag": "only"}, {}).render(HELLO) == "only"
    with pytest.raises(ValueError, match=r"only a, b"):
        ChatTemplate({"a": "", "b": ""}, {}).render(HELLO)


def test_a_template_can_refuse_messages() -> None:
    with pytest.raises(ValueError, match=r"roles must alternate\)"):
        render("{{ raise_exception('roles\n must alternate') }}")


def test_an_assistants_last_message_is_continued() -> None:
    """After the prompt for an answer, as it stands: nothing is stripped, nothing ends it."""
    begun = {"role": "assistant", "content": " 1, 2,\n"}
    for kwargs in ({}, {"enable_thinking": False}):
        before = stock_render(QWEN3, HELLO, add_generation_prompt=True, **kwargs)
        assert render(QWEN3, [*HELLO, begun], **kwargs) == before + begun["content"]
    assert render(QWEN3, [*HELLO, begun], add_generation_prompt=False).endswith("<|im_end|>\n")
    plain = "{% for m in messages %}{{ m.content | trim }}|{% endfor %}>"
    assert render(plain, [*HELLO, begun, *HELLO, begun]) == "Hello!|1, 2,|Hello!|> 1, 2,\n"
    assert render(plain, [begun]) == "> 1, 2,\n"
    with pytest.raises(ValueError, match="none comes before the assistant's"):
        render("{{ messages[0].role }}", [begun])
    assert render(plain, [*HELLO, {"role": "assistant", "content": None}]) == "Hello!|>"


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ([{"content": "a"}, {"content": "b"}], "both an assistant's"),
        ([{"content": "", "tool_calls": [{"function": {}}]}], "with tool_calls"),
        ([{"content": "a", "reasoning_content": "hm"}], "with reasoning_content"),
        ([{"content": [{"type": "text", "text": "a"}]}], "no text"),
    ],
)
def test_last_messages_that_cannot_be_continued(last: list[dict[str, Any]], words: str) -> None:
    messages = [*HELLO, *({"role": "assistant"} | each for each in last)]
    with pytest.raises(ValueError, match=words):
        render("x", messages)
    assert render("x", messages, add_generation_prompt=False) == "x"


@pytest.mark.parametrize(
    "messages", [[], "Hello", {"role": "user"}, [{"content": "x"}], ["x"], [{"role": 1}]]
)
def test_malformed_messages(messages: Any) -> None:
    with pytest.raises(ValueError, match="role"):
        ChatTemplate({"default": "x"}, {}).render(messages)


DOUBLING = (
    "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
)


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ nothing.at.all }}",
        "{{ messages[0].content | no_such_filter }}",
        "{% include 'other' %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% if x %}" * 500 + "{% endif %}" * 500,
        "x" * 300_000,
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ range(10 ** 9) | list }}",
        "{{ [0] * 10 ** 9 }}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ 'a\na' | indent(10 ** 10) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 9999999999) }}",
        "{{ {}.fromkeys([1]) }}",
        "{{ (1).to_bytes(10 ** 9) }}",
        "{{ strftime_now('%99999999Y') }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{{ ('a' * 10 ** 6).replace('a', 'a' * 10 ** 6) }}",
        "{{ ('a' * 10 ** 6) | replace('a', 'a' * 10 ** 6) }}",
        "{{ ('a' * 10 ** 6).join('a' * 10 ** 6) }}",
        "{{ range(100000) | join('a' * 10 ** 6) }}",
        "{{ range(100000) | map('replace', '1', 'a' * 10 ** 6) | list }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ [ns] }}",
        "{% set x %}{% for i in range(100000) %}" + "y" * 1000 + "{% endfor %}{% endset %}{{ x | length }}",
        DOUBLING.replace("START", "'a'").replace("STEP", "ns.x ~ ns.x"),
        DOUBLING.replace("START", "'a'").replace("STEP", "ns.x + ns.x"),
        DOUBLING.replace("START", "'a'").replace("STEP", "'%s%s' % (ns.x, ns.x)"),
        DOUBLING.replace("START", "'a'").replace("STEP", "'{0}{0}'.format(ns.x)"),
        DOUBLING.replace("START", "[1]").replace("STEP", "ns.x + ns.x"),
        DOUBLING.replace("START", "1").replace("STEP", "[ns.x, ns.x]"),
        DOUBLING.replace("START", "1").replace("STEP", "{1: ns.x, 2: ns.x}"),
        DOUBLING.replace("START", "1").replace("STEP", "dict(a=ns.x, b=ns.x)"),
        DOUBLING.replace("START", "9").replace("STEP", "ns.x * ns.x"),
        "{% set ns = namespace(x=1) %}{% macro m() %}{% set ns.x = varargs %}{% endmacro %}"
        "{% for i in range(60) %}{{ m(ns.x, ns.x) }}{% endfor %}{{ ns.x }}",
    ],
    ids=lambda source: source[:40],
)
def test_hostile_templates_fail_in_one_sentence(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="the chat template cannot render") as caught:
        render(source)
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value)


def test_endless_loops_stop_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yakvrt.template_budget.MAX_SECONDS", 0.2)
    for source in (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ range(99999) | map('upper') | join | length }}{% endfor %}",
    ):
        with pytest.raises(ValueError, match=r"runs longer|too much text"):
            render(source)


def test_a_long_conversation_fits() -> None:
    turns = [{"role": role, "content": "word " * 200} for role in ("user", "assistant")] * 1000
    text = render(QWEN3, [*turns, *HELLO])
    assert len(text) > 2_000_000
