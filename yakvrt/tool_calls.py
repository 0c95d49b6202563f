"""Calls of tools in an answer's text, found while it grows."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final, Literal

from .tool_call_text import ARGUMENT_KEYS, ObjectEnd, ToolCall, json_call, python_calls

ToolFormat = Literal["qwen", "llama"]
Part = str | ToolCall

MARKERS: Final[dict[ToolFormat, str]] = {"qwen": "<tool_call>", "llama": "<|python_tag|>"}
QWEN_END: Final = "</tool_call>"
# Control tokens or not, whoever reads the text has to see them.
TOOL_MARKERS: Final = frozenset((*MARKERS.values(), QWEN_END))
CALL_KEYS: Final = frozenset(("name", "type", *ARGUMENT_KEYS))

_BETWEEN_CALLS = re.compile(r"[\s;,]*")
_FIRST_KEY = re.compile(r'\{\s*"([^"\\]*)"')
_FIRST_NAME = re.compile(r"\[\s*([\w.]*)\s*(\(?)")
_PYTHON = re.compile(r"\[\s*(?:[A-Za-z_][\w.]*\s*\(|(?:[A-Za-z_][\w.]*\s*)?\Z)")


def tool_format(template: str) -> ToolFormat | None:
    """The format in which a chat template tells its model to call tools, None when it is not known here."""
    if MARKERS["qwen"] in template and "<function=" not in template:
        return "qwen"
    if "<|start_header_id|>" in template and "tools" in template and "parameters" in template:
        return "llama"
    return None


class ToolCallParser:
    """Text in, in pieces; out come text and whole calls, the same however the text was cut.

    "qwen": <tool_call>{"name": ..., "arguments": {...}}</tool_call>, anywhere in the answer. "llama": an
    answer that is nothing but {"name": ..., "parameters": {...}}, several of them, or [name(key=value), ...];
    or these after <|python_tag|>. What is malformed or names no known tool is text like any other. White
    space beside calls is left out, and what may have become a call at the end of an answer that was cut.
    """

    def __init__(self, style: ToolFormat, names: Collection[str]) -> None:
        self.calls: list[ToolCall] = []
        self._style, self._names, self._marker = style, frozenset(names), MARKERS[style]
        self._held = ""  # what is not certain yet
        self._at_start = style == "llama"  # where calls need no marker
        self._after_call = self._is_cut = False
        self._start: int | None = None  # where in _held calls may begin, once they may
        self._end: ObjectEnd | None = None  # of the object under way there
        self._found: list[ToolCall] = []  # in _held

    def push(self, piece: str) -> list[Part]:
        """The text and the calls that are certain now."""
        return self._advance(piece, ended=False)

    def flush(self, *, is_cut: bool = False) -> list[Part]:
        """The rest, once the answer is complete, or was cut: then it would have gone on."""
        self._is_cut = is_cut
        return self._advance("", ended=True)

    def finish_reason(self, reason: str) -> str:
        """The answer's own reason, but "tool_calls" where it stopped after calls."""
        return "tool_calls" if self.calls and reason == "stop" else reason

    def _advance(self, piece: str, *, ended: bool) -> list[Part]:
        self._held += piece
        parts: list[Part] = []
        goes_on = True
        while goes_on:
            if self._start is None:
                goes_on = self._read_text(parts, ended)
            elif self._style == "qwen":
                goes_on = self._read_tagged(parts, ended)
            else:
                goes_on = self._read_bare(parts, ended)
        return parts

    def _read_text(self, parts: list[Part], ended: bool) -> bool:
        """Gives the text before calls. Returns: whether they may begin now."""
        if self._after_call:
            self._held = self._held.lstrip()
            self._after_call = not self._held
        if self._at_start:
            stripped = self._held.lstrip()
            if not stripped and not ended:
                return False
            self._at_start = False
            if stripped[:1] in ("{", "["):
                self._start = len(self._held) - len(stripped)
                return True
        place = self._held.find(self._marker)
        if place >= 0:
            n_text = len(self._held[:place].rstrip())
            self._give(parts, n_text)
            self._start = place - n_text + len(self._marker)
            return True
        self._give(parts, self._n_certain(ended))
        return False

    def _n_certain(self, ended: bool) -> int:
        """What is held without an end that may begin a marker, and the white space before it."""
        held, marker = self._held, self._marker
        n = next((n for n in range(len(marker) - 1, 0, -1) if held.endswith(marker[:n])), 0)
        if ended and not (n and self._is_cut):
            return len(held)
        return len(held[: len(held) - n].rstrip())

    def _read_tagged(self, parts: list[Part], ended: bool) -> bool:
        """After <tool_call>. Returns: whether text follows, or a call."""
        held, start = self._held, self._start or 0
        if self._end is None:
            at = start + len(held[start:]) - len(held[start:].lstrip())
            if held[at : at + 1] != "{":
                return self._wait(parts, at, at < len(held), ended)
            self._start, self._end = at, ObjectEnd(at)
            start = at
        end = self._end.find(held)
        if end is None:
            return self._wait(parts, self._end.at, self._end.is_wrong, ended)
        rest = held[end:].lstrip()
        if not rest.startswith(QWEN_END) and not (ended and QWEN_END.startswith(rest)):
            return self._wait(parts, end, not QWEN_END.startswith(rest), ended)
        call = json_call(held[start:end], self._names)
        after = len(held) - len(rest) + min(len(rest), len(QWEN_END))
        if call is None:
            return self._is_text(parts, after)
        self._found = [call]
        return self._are_calls(parts, after)

    def _read_bare(self, parts: list[Part], ended: bool) -> bool:
        """Where calls may stand without anything beside them. Returns: whether there is more to read."""
        held, start = self._held, self._start or 0
        if not self._found and self._end is None and held[start:].lstrip()[:1] == "[":
            python = held[start:].lstrip()
            if not ended:
                return self._wait(parts, len(held), not _PYTHON.match(python), ended)
            self._found = python_calls(python, self._names)
            if self._found or (self._is_cut and self._begins_python(python)):
                return self._are_calls(parts, len(held))
            return self._is_text(parts, len(held))
        while True:
            if self._end is None:
                between = _BETWEEN_CALLS.match(held, start)
                at = between.end() if between else start
                if at == len(held):
                    return (
                        self._are_calls(parts, at)
                        if ended and self._found
                        else self._wait(parts, at, False, ended)
                    )
                if held[at] != "{":
                    return self._is_text(parts, at)
                self._start, self._end = at, ObjectEnd(at)
                start = at
            first = _FIRST_KEY.match(held, start)
            end = self._end.find(held)
            if first and first.group(1) not in CALL_KEYS:
                return self._is_text(parts, first.end())
            if end is None:
                return self._wait(parts, self._end.at, self._end.is_wrong, ended)
            call = json_call(held[start:end], self._names)
            if call is None:
                return self._is_text(parts, end)
            self._found.append(call)
            self._start, self._end = end, None
            start = end

    def _begins_python(self, text: str) -> bool:
        """Whether a known name is called first in what may be a list of calls, as far as it goes."""
        begun = _FIRST_NAME.match(text)
        if begun is None:
            return False
        name, parenthesis = begun.groups()
        return name in self._names or (not parenthesis and any(n.startswith(name) for n in self._names))

    def _wait(self, parts: list[Part], at: int, is_text: bool, ended: bool) -> bool:
        """No call so far; it is text up to `at` when it is no call for certain, or nothing more comes."""
        if not (is_text or ended):
            return False
        if self._is_cut and not is_text:
            return self._are_calls(parts, len(self._held))
        return self._is_text(parts, at if is_text else len(self._held))

    def _is_text(self, parts: list[Part], n: int) -> bool:
        self._give(parts, n)
        self._start, self._end, self._found = None, None, []
        return True

    def _are_calls(self, parts: list[Part], n: int) -> bool:
        parts.extend(self._found)
        self.calls.extend(self._found)
        self._held = self._held[n:]
        self._start, self._end, self._found, self._after_call = None, None, [], True
        return True

    def _give(self, parts: list[Part], n: int) -> None:
        """Passes on the first n characters held."""
        if n:
            parts.append(self._held[:n])
            self._held = self._held[n:]
