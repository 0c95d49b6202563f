"""Functions that a model may call: what a request says of them, and calls as the API shows them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from yakvrt.grammar import Grammar
from yakvrt.serve.constraints import check_size
from yakvrt.serve.errors import ApiError
from yakvrt.serve.schema import ChatRequest
from yakvrt.serve.settings import MAX_TOOLS
from yakvrt.tool_call_text import ToolCall
from yakvrt.tool_calls import QWEN_END, ToolCallParser, ToolFormat
from yakvrt.tool_prompt import forced_calls

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions of one request. `stops` end an answer that may hold one call only."""

    style: ToolFormat
    definitions: list[dict[str, Any]]
    names: list[str]
    grammar: Grammar | None = None
    stops: tuple[str, ...] = ()

    def parser(self) -> ToolCallParser:
        """Finds the calls in one answer."""
        return ToolCallParser(self.style, self.names)


def asked_tools(asked: ChatRequest, style: ToolFormat | None) -> Tools | None:
    """None where there are none, or none may be called. Raises: ApiError."""
    names = _checked_names(asked.tools)
    choice = asked.tool_choice
    if isinstance(choice, dict):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, dict) else None
        if asked.tool_choice.keys() - {"type", "function"} or choice not in names:  # type: ignore[union-attr]
            raise ApiError("tool_choice must name one of the tools", param="tool_choice")
        forced: str | None = choice
    elif choice not in (None, "none", "auto", "required"):
        raise ApiError("tool_choice must be none, auto, required or a function", param="tool_choice")
    else:
        forced = None
    if not names:
        if choice == "required":
            raise ApiError("tool_choice needs tools", param="tool_choice")
        return None
    if choice == "none":
        return None
    if style is None:
        raise ApiError(
            "tools are not supported: the model's chat template has no format of calls that is known here",
            code="unsupported_parameter",
            param="tools",
        )
    if asked.has_form:
        raise ApiError(
            'an answer of a form calls no tools; leave tools out, or tool_choice "none"', param="tools"
        )
    tools = Tools(style, asked.tools, names)
    parallel = asked.parallel_tool_calls is not False
    if forced is None and choice != "required":
        if parallel:
            return tools
        if style == "llama":
            raise ApiError("parallel_tool_calls is not supported", param="parallel_tool_calls")
        return Tools(style, asked.tools, names, stops=(QWEN_END,))
    try:
        functions = [tool["function"] for tool in asked.tools]
        check_size([each.get("parameters") for each in functions if forced in (None, each["name"])])
        grammar = forced_calls(style, asked.tools, name=forced, parallel=parallel)
    except ValueError as error:
        raise ApiError(str(error), param="tools") from None
    return Tools(style, asked.tools, names, grammar)


def _checked_names(tools: list[dict[str, Any]]) -> list[str]:
    if len(tools) > MAX_TOOLS:
        raise ApiError(f"tools has {len(tools)} entries, at most {MAX_TOOLS} are taken", param="tools")
    names = []
    for i, tool in enumerate(tools):
        place, function = f"tools[{i}]", tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise ApiError(f'{place} must be {{"type": "function", "function": {{...}}}}', param=place)
        name = function.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ApiError(
                f"{place}.function.name must be 1 to 64 letters, digits, _, . and -",
                param=f"{place}.function.name",
            )
        if not isinstance(function.get("parameters"), dict | None):
            raise ApiError(
                f"{place}.function.parameters must be a JSON schema", param=f"{place}.function.parameters"
            )
        names.append(name)
    return names


def call_object(call: ToolCall) -> dict[str, Any]:
    """As in a message."""
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
