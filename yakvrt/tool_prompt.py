"""Tools on the way in: what templates want of messages, and grammars that make a model call one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from .grammar import Grammar
from .grammar_check import WHITESPACE
from .tool_calls import MARKERS, QWEN_END, ToolFormat

MAX_FORCED_CALLS: Final = 16


def template_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with the arguments of tool calls as objects, which clients send as JSON, and with "" where
    content is None; an empty tool_calls is left out. Arguments that are no JSON object stay text.
    """
    return [_template_message(message) for message in messages]


def forced_calls(
    style: ToolFormat, tools: Sequence[Mapping[str, Any]], *, name: str | None = None, parallel: bool = True
) -> Grammar:
    """Nothing but calls of the tools, or one of the named tool, with arguments that fit its parameters.

    "llama" has one call. Keywords of the parameters' schemas that llguidance does not know are ignored.

    Raises: ValueError for tools that are malformed or too long, none, or not the named one.
    """
    functions = [_function(tool) for tool in tools]
    chosen = [function for function in functions if name in (None, function["name"])]
    if not chosen:
        known = ", ".join(function["name"] for function in functions)
        raise ValueError(
            f"there is no tool {name!r}; the tools are {known}" if known else "there are no tools"
        )
    key = "arguments" if style == "qwen" else "parameters"
    rules = [f"call: {' | '.join(f'f{i}' for i in range(len(chosen)))}"]
    for i, function in enumerate(chosen):
        schema = _closed(function.get("parameters") or {}) | {"x-guidance": {**WHITESPACE, "lenient": True}}
        begin = _literal(f'{{"name": {json.dumps(function["name"])}, "{key}": ')
        rules.append(f"f{i}: {begin} a{i} {_literal('}')}")
        rules.append(f"a{i}: %json {json.dumps(schema)}")
    if style == "qwen":
        rules.append(f"tagged: {_literal(MARKERS['qwen'] + chr(10))} call {_literal(chr(10) + QWEN_END)}")
        more = f' ("\\n" tagged){{0,{MAX_FORCED_CALLS - 1}}}' if parallel and name is None else ""
        rules.append(f"start: tagged{more}")
    else:
        rules.append("start: call")
    return Grammar.gbnf("%llguidance {}\n" + "\n".join(rules))


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError('a tool must look like {"type": "function", "function": {"name": ...}}')
    if not isinstance(function.get("parameters"), Mapping | None):
        raise ValueError(f"the parameters of tool {function['name']!r} must be a JSON schema, an object")
    return function


def _closed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object without members that it does not name, where it says nothing else."""
    schema = {"type": "object", **parameters}
    plain = schema.keys() <= {"type", "properties", "required", "title", "description", "$defs", "$schema"}
    return schema | ({"additionalProperties": False} if plain else {})


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _template_message(message: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(message)
    if made.get("content") is None:
        made["content"] = ""
    calls = made.pop("tool_calls", None)
    if calls:
        made["tool_calls"] = [_template_call(call) for call in calls]
    return made


def _template_call(call: Any) -> Any:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return call
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            function["arguments"] = value
    return {**call, "function": function}
