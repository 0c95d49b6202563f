"""What an answer must look like: a JSON schema, a regular expression or a grammar, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

GrammarKind = Literal["json_schema", "regex", "gbnf"]

MAX_CHARS = 64 << 10


class GrammarError(ValueError):
    """A grammar that takes too much work to follow, or that nothing fits any more."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """For SamplingParams.grammar. Compiled, and thereby checked, when a generation begins.

    kind says what the text is: "json_schema" (as JSON), "regex" (of the whole answer) or "gbnf" (llama.cpp's
    notation; as there, a text that begins with %llguidance is in llguidance's dialect of Lark).

    Raises: ValueError for a text that is empty or longer than MAX_CHARS, or JSON that is none.
    """

    kind: GrammarKind
    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError(f"the grammar ({self.kind}) is empty; leave it out for free text")
        if len(self.text) > MAX_CHARS:
            raise ValueError(
                f"the grammar ({self.kind}) has {len(self.text)} characters; shorten it to {MAX_CHARS}"
            )
        if self.kind == "json_schema":
            try:
                schema = json.loads(self.text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"the JSON schema is not valid JSON ({error}); correct it") from None
            if not isinstance(schema, dict):
                raise ValueError('the JSON schema is no JSON object; write a schema as {"type": "object"}')

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, Any]) -> Grammar:
        """JSON that fits the schema, which is given as its text or as an object.

        Raises: ValueError.
        """
        if isinstance(schema, str):
            return cls("json_schema", schema)
        try:
            return cls("json_schema", json.dumps(schema))
        except (TypeError, RecursionError) as error:
            raise ValueError(f"the JSON schema cannot be written as JSON ({error}); correct it") from None

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls("json_schema", '{"type": "object"}')

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that the regular expression matches from end to end (the syntax of Rust's regex)."""
        return cls("regex", pattern)

    @classmethod
    def gbnf(cls, text: str) -> Grammar:
        """Text of llama.cpp's grammars, with the rule `root`."""
        return cls("gbnf", text)
