"""Single calls of tools as models write them: JSON objects, and Python's calls."""

from __future__ import annotations

import ast
import json
import re
import secrets
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

ARGUMENT_KEYS: Final = ("arguments", "parameters")
MAX_PYTHON_CHARS: Final = 64 << 10

_SPACE = re.compile(r"[ \t\n\r]*")
_NOTABLE = re.compile(r'["\\{}\[\]<]')


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as the API shows it; arguments are the text of a JSON object, as the model wrote it."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}", compare=False)


class ObjectEnd:
    """Finds where the JSON object ends that begins at a place of a growing text, in linear time."""

    __slots__ = ("_depth", "_end", "_in_string", "at", "is_wrong")

    def __init__(self, start: int) -> None:
        self.at = start  # what lies before has been looked at
        self.is_wrong = False  # no object goes on as the text does at .at
        self._depth, self._in_string = 0, False
        self._end: int | None = None

    def find(self, text: str) -> int | None:
        """The place behind the object, None while it goes on."""
        while self._end is None and not self.is_wrong and (found := _NOTABLE.search(text, self.at)):
            place, char = found.start(), found.group()
            if char == "\\":
                if not self._in_string:
                    self.at, self.is_wrong = place, True
                elif place + 1 == len(text):  # what it escapes is still to come
                    self.at = place
                    return None
                else:
                    self.at = place + 2
                continue
            self.at = place + 1
            if char == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                if char == "<":
                    self.at, self.is_wrong = place, True
                    break
                self._depth += 1 if char in "{[" else -1
                if self._depth == 0:
                    self._end = self.at
        return self._end


def json_call(text: str, names: Set[str]) -> ToolCall | None:
    """The call of one of the tools that {"name": ..., "arguments" or "parameters": {...}} is."""
    try:
        members = _members(text)
    except (ValueError, RecursionError):
        return None
    name = members.get("name", ("", ""))[0]
    if not isinstance(name, str) or name not in names:
        return None
    value, written = next((members[key] for key in ARGUMENT_KEYS if key in members), (None, ""))
    if value is None:
        return ToolCall(name, "{}")
    if isinstance(value, str):  # the object as JSON within JSON
        written = value.strip()
        try:
            _members(written)
            written.encode()  # half a surrogate pair cannot be told
        except (ValueError, RecursionError):
            return None
    elif not isinstance(value, dict):
        return None
    return ToolCall(name, written)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


# Numbers stay text: nobody here reads them, and a long one would take long.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse)


def _members(text: str) -> dict[str, tuple[Any, str]]:
    """Key: value and the text of the value, of a JSON object that is the whole text. Raises: ValueError."""

    def skip(at: int) -> int:
        match = _SPACE.match(text, at)
        return match.end() if match else at

    members: dict[str, tuple[Any, str]] = {}
    at = skip(0)
    if text[at : at + 1] != "{":
        raise ValueError("no object")
    closed = text[skip(at + 1) : skip(at + 1) + 1] == "}"
    at = skip(at + 1) if closed else at
    while not closed:
        at = skip(at + 1)
        if text[at : at + 1] != '"':
            raise ValueError("no key")
        key, at = _DECODER.raw_decode(text, at)
        at = skip(at)
        if text[at : at + 1] != ":":
            raise ValueError("no value")
        start = skip(at + 1)
        value, at = _DECODER.raw_decode(text, start)
        members[key] = value, text[start:at]
        at = skip(at)
        if text[at : at + 1] not in (",", "}"):
            raise ValueError("no end")
        closed = text[at] == "}"
    if skip(at + 1) != len(text):
        raise ValueError("more than an object")
    return members


def python_calls(text: str, names: Set[str]) -> list[ToolCall]:
    """The calls of [name(key=value, ...), ...]; none where anything else is written."""
    if len(text) > MAX_PYTHON_CHARS:
        return []
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return [_python_call(call, names) for call in tree.elts] if isinstance(tree, ast.List) else []
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return []


def _python_call(call: ast.expr, names: Set[str]) -> ToolCall:
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("no call with arguments by name")
    name = ast.unparse(call.func)
    if name not in names:
        raise ValueError("no such tool")
    arguments = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("no name of an argument")
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    written.encode()  # as above
    return ToolCall(name, written)
