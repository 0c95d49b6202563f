"""A KV method as benchmarks name it: a name of `--kv`, with parameters as in yakv:recent=128;tail=0."""

from __future__ import annotations


def name_and_args(label: str) -> tuple[str, dict[str, str]]:
    """What open_method takes."""
    name, _, rest = label.partition(":")
    return name, dict(pair.split("=", 1) for pair in rest.split(";") if pair)
