"""What confines an answer to a form: response_format, and llama.cpp's grammar and json_schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from yakvrt.grammar import MAX_CHARS, Grammar
from yakvrt.serve.errors import ApiError
from yakvrt.serve.schema import Sampling


def asked_grammar(asked: Sampling) -> Grammar | None:
    """Raises: ApiError for more than one, or one that makes no sense."""
    given = {
        "response_format": asked.response_format if asked.response_format != {"type": "text"} else None,
        "json_schema": asked.json_schema,
        "grammar": asked.grammar or None,
    }
    names = [name for name, value in given.items() if value is not None]
    if not names:
        return None
    if len(names) > 1:
        raise ApiError(f"{names[0]} and {names[1]} exclude each other", param=names[1])
    try:
        if asked.response_format is not None and names == ["response_format"]:
            return _of_format(asked.response_format)
        if asked.json_schema is not None:
            return _of_schema(asked.json_schema)
        return Grammar.gbnf(asked.grammar)
    except ValueError as error:
        raise ApiError(str(error), param=names[0]) from None


def _of_format(wanted: dict[str, Any]) -> Grammar:
    """OpenAI's objects; llama.cpp also takes a schema beside json_object."""
    kind, known = wanted.get("type"), {"type"}
    if kind == "json_object":
        known.add("schema")
        schema = wanted.get("schema")
    elif kind == "json_schema":
        known.add("json_schema")
        inner = wanted.get("json_schema")
        if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
            raise ApiError("response_format.json_schema.schema is missing", param="response_format")
        _check_keys(inner, {"name", "description", "schema", "strict"}, "response_format.json_schema")
        schema = inner["schema"]
    else:
        raise ApiError(
            f"response_format.type is {str(kind)[:40]!r}, it must be text, json_object or json_schema",
            param="response_format",
        )
    _check_keys(wanted, known, "response_format")
    if schema is not None and not isinstance(schema, dict):
        raise ApiError("response_format.schema must be an object", param="response_format")
    return Grammar.json_object() if schema is None else _of_schema(schema)


def _of_schema(schema: dict[str, Any]) -> Grammar:
    check_size([schema])
    return Grammar.json_schema(schema)


def check_size(schemas: Sequence[Any]) -> None:
    """Raises: ValueError for schemas that no grammar may be as long as, before one is made of megabytes."""
    n = sum(len(msgspec.json.encode(schema)) for schema in schemas)  # never longer than in the grammar
    if n > MAX_CHARS:
        raise ValueError(f"the schema has {n} bytes; shorten it to {MAX_CHARS}")


def _check_keys(given: dict[str, Any], known: set[str], place: str) -> None:
    if unknown := given.keys() - known:
        name = min(unknown)[:60]
        raise ApiError(f"{place}.{name} is not supported; leave it out", param="response_format")
