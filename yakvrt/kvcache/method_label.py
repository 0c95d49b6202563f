"""A KV method with parameters of its own in one word, as yakv:recent=128;tail=0."""

from __future__ import annotations


def name_and_args(label: str) -> tuple[str, dict[str, str]]:
    """What open_method takes. Raises: ValueError for a parameter without a value."""
    name, _, rest = label.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(";") if pair]
    if not all(key and value for key, _, value in pairs):
        raise ValueError(f"KV method {label!r} is not understood; write parameters as yakv:recent=128;tail=0")
    return name, {key: value for key, _, value in pairs}
