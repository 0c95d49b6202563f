"""The `general.` keys that say where a model comes from, out of its card, its settings and its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gguf_tools.convert_model_name import model_name, title
from gguf_tools.front_matter import Card, read_card
from gguf_tools.meta_value import MetaValue, ValueType, array, scalar, string

HUB: Final = "https://huggingface.co"
# GGUF's key after `general.` and the card's keys that fill it, the first one present.
_TEXTS: Final = (
    ("author", ("author", "model_author", "model_creator")),
    ("version", ("version", "model_version")),
    ("organization", ("organization", "model_organization")),
    ("finetune", ("finetune", "model_finetune")),
    ("basename", ("basename", "model_basename", "model_type")),
    ("description", ("description", "model_description")),
    ("size_label", ("size_label", "model_size_label")),
    ("license", ("license",)),
    ("license.name", ("license_name",)),
    ("license.link", ("license_link",)),
    ("source.url", ("url", "model_url")),
    ("source.doi", ("doi", "model_doi")),
    ("source.uuid", ("uuid", "model_uuid")),
    ("source.repo_url", ("repo_url", "model_repo_url")),
)
_LISTS: Final = (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language")))
_MODELS: Final = (
    ("base_model", ("base_model", "base_models", "base_model_sources")),
    ("dataset", ("datasets", "dataset", "dataset_sources")),
)
# generation_config.json's key -> GGUF's after `general.sampling.`.
_SAMPLING: Final = (
    ("top_k", "top_k", ValueType.INT32),
    ("top_p", "top_p", ValueType.FLOAT32),
    ("min_p", "min_p", ValueType.FLOAT32),
    ("temperature", "temp", ValueType.FLOAT32),
)


def card_keys(
    directory: Path, given_name: str | None, n_weights: int, size_label: str | None
) -> dict[str, MetaValue]:
    """general.name and what else is known of the model; `size_label` is the one to use where no name has one.

    The card comes first, then `_name_or_path` of config.json, then the directory's name.
    """
    card = read_card(directory / "README.md")
    texts: dict[str, str] = {}
    for key, sources in _TEXTS:
        if (value := next((card[source] for source in sources if source in card), None)) is not None:
            texts[key] = value if isinstance(value, str) else ",".join(value)
    names = [directory.resolve().name]
    if (told := _told_name(directory)) is not None:
        names.insert(0, told)
    own_name = next((v for k in ("name", "model_name") if isinstance(v := card.get(k), str)), None)
    for name in names:
        known = model_name(name, n_weights)
        own_name = own_name or title(known.name)
        for key in ("organization", "basename", "finetune", "version", "size_label"):
            if value := getattr(known, key):
                texts.setdefault(key, title(value) if key == "organization" else value)
    if size_label is not None:
        texts.setdefault("size_label", size_label)
    keys = {"general.name": string(given_name or own_name or directory.resolve().name)}
    keys |= {f"general.{key}": string(texts[key]) for key, _ in _TEXTS if key in texts}
    for prefix, sources in _MODELS:
        keys |= _model_keys(f"general.{prefix}", _listed(card, sources[:1]) or _listed(card, sources[1:]))
    for key, sources in _LISTS:
        if words := _listed(card, sources):
            keys[f"general.{key}"] = array(ValueType.STRING, words)
    return keys


def sampling_keys(generation: Mapping[str, Any]) -> dict[str, MetaValue]:
    """The sampler settings that a generation_config.json recommends."""
    keys: dict[str, MetaValue] = {}
    for source, key, kind in _SAMPLING:
        value = generation.get(source)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if abs(value) < (1e30 if kind is ValueType.FLOAT32 else 1 << 31) and (
            kind is ValueType.FLOAT32 or isinstance(value, int)
        ):
            keys[f"general.sampling.{key}"] = scalar(kind, value)
    return keys


def _told_name(directory: Path) -> str | None:
    """The name that config.json remembers, where it is a name and no path of some computer."""
    from gguf_tools.convert_config import read_json

    name = read_json(directory / "config.json").get("_name_or_path")
    return name if isinstance(name, str) and name and name.isprintable() and name.count("/") <= 1 else None


def _listed(card: Card, sources: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for source in sources:
        value = card.get(source, [])
        found += [value] if isinstance(value, str) else value
    return found


def _model_keys(prefix: str, identities: list[str]) -> dict[str, MetaValue]:
    """Models or datasets by their names on the hub, ORGANIZATION/NAME, or by an address."""
    if not identities:
        return {}
    keys = {f"{prefix}.count": scalar(ValueType.UINT32, len(identities))}
    for i, identity in enumerate(identities):
        is_address = identity.startswith(("http://", "https://", "ssh://"))
        on_hub = re.fullmatch(rf"{re.escape(HUB)}/([^/]+/[^/]+)", identity)
        known = model_name(on_hub[1] if on_hub else identity) if on_hub or not is_address else None
        said = {}
        if known is not None:
            said = {
                "name": title(known.name),
                "version": known.version,
                "organization": title(known.organization) if known.organization else None,
            }
        if is_address:
            said["repo_url"] = identity
        elif known is not None and known.organization:
            said["repo_url"] = f"{HUB}/{known.organization}/{known.name}"
        keys |= {f"{prefix}.{i}.{key}": string(text) for key, text in said.items() if text}
    return keys
