"""Tool calls: found however the text is cut, nothing lost; rendered for templates; forced by grammars."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_level

from yakvrt.chat_template import ChatTemplate
from yakvrt.generation import Generation
from yakvrt.sampler import SamplingParams
from yakvrt.tool_call_text import ToolCall
from yakvrt.tool_calls import Part, ToolCallParser, ToolFormat, tool_format
from yakvrt.tool_prompt import forced_calls, template_messages

RNG = np.random.default_rng()
QWEN3 = (Path(__file__).parent / "data" / "tokenizer" / "qwen3_chat_template.jinja").read_text("utf-8")
LLAMA = (
    "<|start_header_id|>{% if tools %}Respond in the format {'name': ..., 'parameters': ...}{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}"
    "{% endfor %}"
)
NAMES = ("f", "g")
Expected = list[str | tuple[str, str]]


def parts(style: ToolFormat, pieces: list[str], *, is_cut: bool = False) -> tuple[Expected, ToolCallParser]:
    """What the parser gives, with the texts between calls joined."""
    parser = ToolCallParser(style, NAMES)
    found: list[Part] = [part for piece in pieces for part in parser.push(piece)]
    found += parser.flush(is_cut=is_cut)
    assert all(found)
    assert [part for part in found if isinstance(part, ToolCall)] == parser.calls
    joined: Expected = []
    for part in found:
        if isinstance(part, ToolCall):
            joined.append((part.name, part.arguments))
        elif joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined, parser


CASES: list[tuple[ToolFormat, str, Expected | None]] = [  # None: all of it is text
    ("qwen", "hello", None),
    ("qwen", "", []),
    ("qwen", '<tool_call>\n{"name": "f", "arguments": {"a": 1.0}}\n</tool_call>', [("f", '{"a": 1.0}')]),
    (
        "qwen",
        'Look:\n\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n'
        '<tool_call>\n{"arguments": {"x": [{}]}, "name": "g"}</tool_call>\n and more ',
        ["Look:", ("f", "{}"), ("g", '{"x": [{}]}'), "and more "],
    ),
    (
        "qwen",  # ends within strings are no ends
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call> \\" } \\\\"}}</tool_call>',
        [("f", '{"a": "</tool_call> \\" } \\\\"}')],
    ),
    ("qwen", '<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
    ("qwen", '<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", "{}")]),
    ("qwen", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 2}"}</tool_call>', [("f", '{"a": 2}')]),
    ("qwen", '<tool_call>{"name": "f", "arguments": {}}', [("f", "{}")]),
    ("qwen", '<tool_call>{"name": "f", "arguments": {}} </tool', [("f", "{}")]),
    ("qwen", '<tool_call>{"name": "f", "arguments": {"a": 1', None),
    ("qwen", '<tool_call>{"name": "f", "arguments": {}} x</tool_call>', None),
    ("qwen", '<tool_call>{"name": "h", "arguments": {}}</tool_call>', None),
    ("qwen", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', None),
    # half a surrogate pair cannot be told
    ("qwen", r'<tool_call>{"name": "f", "arguments": "{\"a\": \"\ud800\"}"}</tool_call>', None),
    ("qwen", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', None),
    ("qwen", '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>', None),
    ("qwen", "<tool_call>now</tool_call> <tool_call> ", None),
    ("qwen", "a <tool_ca b < c \n", None),
    (
        "qwen",
        '<tool_call>{"name": "f", </tool_call>\n<tool_call>{"name": "g"}</tool_call>',
        ['<tool_call>{"name": "f", </tool_call>', ("g", "{}")],
    ),
    ("llama", "hello {", None),
    ("llama", ' {"name": "f", "parameters": {"a": "é\\n"}}\n', [("f", '{"a": "é\\n"}')]),
    ("llama", '{"type": "function", "name": "f", "parameters": {}}', [("f", "{}")]),
    ("llama", '{"name": "f", "parameters": {}}; {"name": "g"}', [("f", "{}"), ("g", "{}")]),
    ("llama", '{"name": "f", "parameters": {}} is a call', None),
    ("llama", '{"answer": {"name": "f"}}', None),
    ("llama", 'So: {"name": "f", "parameters": {}}', None),
    ("llama", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', [("f", '{"a": 1}')]),
    ("llama", 'Wait <|python_tag|> {"name": "f"}', ["Wait", ("f", "{}")]),
    ("llama", "<|python_tag|>print(1)", None),
    ("llama", '[f(a=1, b="x"), g(c=[None])]', [("f", '{"a": 1, "b": "x"}'), ("g", '{"c": [null]}')]),
    ("llama", "[1, 2]", None),
    ("llama", "[f(1)]", None),
    ("llama", "[f(a=b)]", None),
    ("llama", r'[f(a="\ud800")]', None),
    ("llama", "[f(a=1)] and", None),
    ("llama", "[h()]", None),
    ("llama", "[", None),
    ("llama", "{", None),
    ("llama", "  \n", None),
]  # fmt: skip


@pytest.mark.parametrize(("style", "text", "expected"), CASES)
def test_calls_are_found_however_the_text_is_cut(
    style: ToolFormat, text: str, expected: Expected | None
) -> None:
    wanted = ([text] if text else []) if expected is None else expected
    assert parts(style, [text])[0] == wanted
    assert parts(style, list(text))[0] == wanted
    for _ in range(20):
        cuts = sorted(RNG.integers(0, len(text) + 1, 4).tolist())
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        found, parser = parts(style, pieces)
        assert found == wanted
        assert parser.finish_reason("stop") == ("tool_calls" if parser.calls else "stop")
        assert parser.finish_reason("length") == "length"


CUT: list[tuple[ToolFormat, str, Expected]] = [  # what may have become a call is no text
    ("qwen", '<tool_call>\n{"name": "f", "argu', []),
    ("qwen", "Look:\n<tool_call>", ["Look:"]),
    ("qwen", "Look:\n<tool", ["Look:"]),
    ("qwen", '<tool_call>{"name": "f"}</tool_call>\n<tool_call>\n{"name": "g", "a', [("f", "{}")]),
    ("qwen", '<tool_call>{"name": "f"}\n</tool_', [("f", "{}")]),
    ("qwen", "two words ", ["two words "]),
    ("qwen", "<tool_call>now", ["<tool_call>now"]),
    ("qwen", '<tool_call>{"name": "h"}</tool_call>', ['<tool_call>{"name": "h"}</tool_call>']),
    ("llama", '{"name": "f", "parameters": {"a', []),
    ("llama", '{"na', []),
    ("llama", '{"name": "f"}; {"name": "g", "pa', [("f", "{}")]),
    ("llama", 'Wait <|python_tag|> {"name', ["Wait"]),
    ("llama", '{"answer": {"na', ['{"answer": {"na']),
    ("llama", '[f(a=1), g(b="', []),
    ("llama", "[f", []),
    ("llama", "[array(1), ", ["[array(1), "]),
    ("llama", "[f(a=1)]", [("f", '{"a": 1}')]),
]


@pytest.mark.parametrize(("style", "text", "expected"), CUT)
def test_a_call_that_is_cut_is_no_text(style: ToolFormat, text: str, expected: Expected) -> None:
    for pieces in ([text], list(text)):
        found, parser = parts(style, pieces, is_cut=True)
        assert found == expected
        assert parser.finish_reason("length") == "length"


FRAGMENTS = [
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    '{"name": "f"',
    ', "arguments": {',
    '"',
    "\\",
    "}",
    "{",
]
FRAGMENTS += ["}}", "[f(", "a=1", ")]", " ", "\n", "<", ";", "x", '{"name":"g"}', "]", '"parameters":{}}']


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["qwen", "llama"]),
    st.lists(st.sampled_from(FRAGMENTS), max_size=12),
    st.booleans(),
    st.data(),
)
def test_anything_cut_anywhere_gives_the_same(
    style: ToolFormat, made: list[str], is_cut: bool, data: st.DataObject
) -> None:
    text = "".join(made)
    whole, parser = parts(style, [text], is_cut=is_cut)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parts(style, pieces, is_cut=is_cut)[0] == whole
    if not (parser.calls or is_cut):
        assert whole == ([text] if text else [])
    for call in parser.calls:
        assert isinstance(json.loads(call.arguments), dict)


@pytest.mark.parametrize(
    "repeated", ["<tool_call>", '<tool_call>{"', "<|python_tag|>{", "[", '{"name":{', "  \n"]
)
def test_long_answers_take_linear_time(repeated: str) -> None:
    started = time.process_time()
    for style in ("qwen", "llama"):
        text = repeated * 10_000
        assert parts(style, [repeated] * 10_000)[0] == [text]
    assert time.process_time() - started < 10


def test_calls_have_ids_of_their_own() -> None:
    _, parser = parts("qwen", ['<tool_call>{"name": "f"}</tool_call>' * 2])
    first, second = parser.calls
    assert first == second
    assert first.id != second.id
    assert first.id.startswith("call_")


def test_templates_tell_their_format(tmp_path: Path) -> None:
    assert tool_format(QWEN3) == "qwen"
    assert tool_format(LLAMA) == "llama"
    assert tool_format("{% for m in messages %}{{ m.content }}{% endfor %}") is None
    assert tool_format("<tool_call>\n<function=name>") is None  # another format between the same tags
    assert byte_level(tmp_path, {"chat_template": QWEN3}).tool_format == "qwen"
    several = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": LLAMA}]
    assert byte_level(tmp_path, {"chat_template": several}).tool_format == "llama"
    assert byte_level(tmp_path).tool_format is None


def test_a_stream_shows_where_calls_begin(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    ids = tokenizer.encode("<s><|python_tag|>a<tool_call>b</tool_call><|im_end|>")
    assert tokenizer.decode(ids) == "<|python_tag|>a<tool_call>b</tool_call>"


def test_messages_of_clients_render() -> None:
    """Arguments come as JSON text and content as null; templates want an object and a text."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\u00e9"}'}}
    messages = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
        {"role": "assistant", "content": "Three.", "tool_calls": None},
        {"role": "user", "content": "And?"},
    ]
    made = template_messages(messages)
    text = ChatTemplate({"default": QWEN3}, {}).render(made)
    assert '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>' in text
    assert "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>" in text
    assert ChatTemplate({"default": LLAMA}, {}).render(made, tools=[call]).endswith('{"a": "é"}')
    assert messages[1]["content"] is None  # the client's own stay as they are
    bad = {"function": {"name": "f", "arguments": "{"}}
    assert template_messages([{"role": "assistant", "tool_calls": [bad]}])[0]["tool_calls"] == [bad]


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, **({"parameters": parameters} if parameters else {})},
    }


TOOLS = [
    tool("f"),
    tool(
        'g"',
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/a"}, "n": {"type": "integer", "maximum": 9, "minimum": 0}},
            "required": ["a", "n"],
            "$defs": {"a": {"enum": ["x", "é"]}},
        },
    ),
]


@pytest.mark.parametrize("style", ["qwen", "llama"])
def test_forced_calls_are_calls(style: ToolFormat, tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    names = [each["function"]["name"] for each in TOOLS]
    for wanted in (None, 'g"'):
        grammar = forced_calls(style, TOOLS, name=wanted)
        for seed in range(6):
            parser = ToolCallParser(style, names)
            generation = Generation(tokenizer, [1], SamplingParams(grammar=grammar, seed=seed), 8192)
            text = []
            while generation.finish_reason is None:
                logits = RNG.normal(size=tokenizer.vocab_size).astype(np.float32)
                logits[list(tokenizer.eos_ids)] += 3
                text += parser.push(generation.push(logits))
            assert all(isinstance(part, ToolCall) for part in text + parser.flush())
            assert parser.calls
            if style == "llama" or wanted:
                assert len(parser.calls) == 1
            for call in parser.calls:
                arguments = json.loads(call.arguments)
                assert call.name == 'g"' or (not wanted and arguments == {})
                if call.name == 'g"':
                    assert list(arguments) == ["a", "n"]
                    assert arguments["a"] in ("x", "é")
                    assert arguments["n"] in range(10)


@pytest.mark.parametrize(
    ("tools", "name", "message"),
    [
        ([], None, "there are no tools"),
        ([tool("f")], "x", "there is no tool 'x'; the tools are f"),
        ([{"name": "f"}], None, "a tool must look like"),
        ([tool("")], None, "a tool must look like"),
        ([{"type": "function", "function": {"name": "f", "parameters": [1]}}], None, "must be a JSON schema"),
    ],
)
def test_tools_that_are_none(tools: list[Any], name: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forced_calls("qwen", tools, name=name)
