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

    A module offers Parameters (a frozen dataclass), pools(config, parameters, kind, n_tokens), step_bytes of
    the same, and build(setting, parameters).
    """

    module: str
    values: Mapping[str, Any] = field(default_factory=dict)


# The presets "-equal" are those of the YAKV paper's comparison: the same bytes over the link in a step,
# before any reuse, as 3.125 % of the rows at 4 bits; with rows of 16 bits that is 1/128 of them, K and V.
# Two differ from it: LRQK's heads share 1/128 of the rows in groups of any size (the comparison's 0.26 % per
# query head is that for groups of three), at rank 32 for all models (the comparison: 16 for Llama).
# InfiniGen's alpha is off, where 99 can still cut.
METHODS = {
    "full": Preset("full"),
    "yakv": Preset("yakv"),
    "yakv-1.5bit": Preset("yakv", {"selector": "1.5bit", "k_bits": "4"}),
    "yakv-paper": Preset("yakv_paper"),
    "quest": Preset("quest"),
    "quest-equal": Preset(
        "quest", {"sparse_budget": 0.0078125, "min_pages": 1, "window": 5, "dense_layers": 0}
    ),
    "arkvale": Preset("arkvale"),
    "arkvale-equal": Preset(
        "arkvale",
        {"sparse_budget": 0.0078125, "cache_budget": 0, "page": 16, "window": 5, "dense_layers": 0},
    ),
    "shadowkv": Preset("shadowkv"),
    "shadowkv-equal": Preset("shadowkv", {"sparse_budget": 0.015625}),
    "lrqk": Preset("lrqk"),
    "lrqk-equal": Preset(
        "lrqk", {"sparse_budget": 0.0078125, "split_budget": True, "rank": 32, "recent": 64}
    ),
    "infinigen": Preset("infinigen"),
    "infinigen-equal": Preset("infinigen", {"sparse_budget": 0.0078125, "alpha": 1e9, "dense_layers": 0}),
    "oracle": Preset("oracle"),
    "oracle-equal": Preset("oracle", {"sparse_budget": 0.0078125}),
}


def open_method(name: str, args: Mapping[str, str], *, on_gpu: bool = False) -> tuple[ModuleType, Any]:
    """The module of a method and its parameters, `args` over the preset's. On a GPU rows from the host pass
    through a cache of rows, which is twice a selection there if nothing else is asked for.

    Raises: ValueError for an unknown method, an unknown parameter, or a value out of range.
    """
    if name not in METHODS:
        raise ValueError(f"KV method {name!r} is not known; choose one of {', '.join(METHODS)}")
    preset = METHODS[name]
    module = import_module(f".{preset.module}", __name__)
    cached = on_gpu and "slot_cache" in module.Parameters.__dataclass_fields__
    values = {"slot_cache": 2.0, **preset.values} if cached else preset.values
    return module, fill(module.Parameters, values, args, name)
