"""Typed, range-checked reading of the key-values that describe a model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any


class ConfigError(ValueError):
    """A model description that is malformed or asks for something yakvrt does not run."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The key-values of one source; `source` and `prefix` name it and its keys in messages.

    Raises: ConfigError from every reader, for a missing key without a default or a wrong type.
    """

    values: Mapping[str, Any]
    source: str
    prefix: str = ""

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.prefix + key in self.values and self.values[self.prefix + key] is not None

    def first(self, *keys: str) -> str:
        """The first of several names of one key that is present, else the first name."""
        return next((key for key in keys if self.has(key)), keys[0])

    def whole(self, key: str, default: int | None = None) -> int:
        """An integer; a per-layer list of equal integers counts as that integer."""
        value = self._get(key, default)
        if isinstance(value, list) and value and all(type(v) is int and v == value[0] for v in value):
            value = value[0]
        elif isinstance(value, list):
            raise ConfigError(f"{self._name(key)} differs from layer to layer, which yakvrt does not run")
        if type(value) is not int or abs(value) > 1 << 63:
            raise self._wrong(key, value, "a whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise self._wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if type(value) is not bool:
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def _get(self, key: str, default: object) -> Any:
        if self.has(key):
            return self.values[self.prefix + key]
        if default is None:
            raise ConfigError(f"{self._name(key)} is missing; use a complete copy of the model")
        return default

    def _name(self, key: str) -> str:
        return f"{self.prefix}{key} of {self.source}"

    def _wrong(self, key: str, value: object, wanted: str) -> ConfigError:
        return ConfigError(f"{self._name(key)} is {shortened(value)[:80]}; it must be {wanted}")
