"""A method's parameters from its preset and from text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

_READERS = {"int": int, "float": float, "str": str}


def fill(kind: type, preset: Mapping[str, Any], args: Mapping[str, str], method: str) -> Any:
    """An instance of the frozen dataclass `kind`: its defaults, then the preset's values, then `args`.

    Raises: ValueError for an unknown name or a value that is not of the field's type or out of its range.
    """
    types = {f.name: str(f.type) for f in fields(kind)}
    values = dict(preset)
    for name, text in args.items():
        if name not in types:
            near = get_close_matches(name, types, 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(types) or 'none'}"
            raise ValueError(f"KV method {method!r} has no parameter {name!r}; {hint}")
        values[name] = _read(name, text, types[name])
    return kind(**values)


def _read(name: str, text: str, type_name: str) -> Any:
    if type_name == "bool":
        if text.lower() not in ("on", "off", "true", "false", "1", "0"):
            raise ValueError(f"{name}={text} is neither on nor off")
        return text.lower() in ("on", "true", "1")
    try:
        return _READERS[type_name](text)
    except ValueError:
        kind = "a whole number" if type_name == "int" else "a number"
        raise ValueError(f"{name}={text} is not {kind}") from None
