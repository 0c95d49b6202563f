"""KV methods by name, each a preset of one module's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from .parameters import fill


@dataclass(frozen=True, slots=True)
class Preset:
    """A module of this package and the parameters in which the preset differs from its defaults.

    A module offers Parameters (a frozen dataclass), pools(config, parameters, kind, n_tokens) and
    build(setting, parameters).
    """

    module: str
    values: Mapping[str, Any] = field(default_factory=dict)


METHODS = {
    "full": Preset("full"),
}


def open_method(name: str, args: Mapping[str, str]) -> tuple[ModuleType, Any]:
    """The module of a method and its parameters, `args` over the preset's.

    Raises: ValueError for an unknown method, an unknown parameter, or a value out of range.
    """
    if name not in METHODS:
        raise ValueError(f"KV method {name!r} is not known; choose one of {', '.join(METHODS)}")
    preset = METHODS[name]
    module = import_module(f".{preset.module}", __name__)
    return module, fill(module.Parameters, preset.values, args, name)
