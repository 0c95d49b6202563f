"""The parts of a model's name, as llama.cpp's converter takes them apart: Mistral-7B-Instruct-v0.2.

Source: the naming convention in ggml's docs/gguf.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_VERSION: Final = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_STORED_TYPE: Final = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE: Final = re.compile(
    r"(A|\d+x)?\d+([._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl", re.IGNORECASE
)  # A3B: active weights; 8x7B: experts
_FINETUNE: Final = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_UNTITLED: Final = re.compile(r"v\d+(\.\d+)*|\d.*")
_POWERS: Final = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class ModelName:
    """What a name says; None where it says nothing."""

    name: str
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


def title(name: str) -> str:
    """A name for people: words for dashes, lower-case words capitalised, versions and sizes as they are."""
    words = name.replace("-", " ").split()
    return " ".join(
        word.title() if word.islower() and not _UNTITLED.fullmatch(word) else word for word in words
    )


def model_name(identity: str, n_weights: int = 0) -> ModelName:
    """Takes ORGANIZATION/NAME or NAME apart; `n_weights` tells sizes from context lengths, 0 when unknown."""
    if " " in identity:
        return ModelName(identity)
    organization, slash, name = identity.partition("/")
    if not slash:
        organization, name = "", identity
    parts = [part for part in name.split("-") if part]
    kinds: list[str] = []
    for i, part in enumerate(parts):
        kind, parts[i] = _kind(part, i == 0, n_weights)
        kinds.append(kind)
    sizes = [part for part, kind in zip(parts, kinds, strict=True) if kind == "size"]
    if any(c.isdecimal() for size in sizes for c in size):
        # Words are sizes only where no number is.
        kinds = [
            "" if kind == "size" and part.isalpha() else kind for part, kind in zip(parts, kinds, strict=True)
        ]
    lead = 0
    while lead < len(parts) and (kinds[lead] == "version" or (not kinds[lead] and parts[lead][0].isalpha())):
        lead += 1
    if lead == len(parts):
        # A version at the end of the whole name is the model's own.
        while lead and kinds[lead - 1] == "version":
            lead -= 1

    def joined(*wanted: str) -> str | None:
        found = [part for part, kind in zip(parts[lead:], kinds[lead:], strict=True) if kind in wanted]
        return "-".join(dict.fromkeys(found) if wanted == ("size",) else found) or None

    finetune, version, size = joined("finetune", ""), joined("version"), joined("size")
    says_something = finetune or version or size
    return ModelName(
        name,
        organization if organization and organization[0] != "." else None,
        ("-".join(parts[:lead]) or None) if says_something else None,
        finetune,
        version,
        size,
    )


def _kind(part: str, is_first: bool, n_weights: int) -> tuple[str, str]:
    """What a part of a name is ("" for a plain word), and how it is written."""
    if _VERSION.fullmatch(part):
        return "version", part
    if _STORED_TYPE.fullmatch(part):
        return "type", part.upper()
    if is_first:
        return "", part
    if _SIZE.fullmatch(part):
        return _sized(part.replace("_", "."), n_weights)
    return ("finetune" if _FINETUNE.fullmatch(part) else ""), part


def _sized(part: str, n_weights: int) -> tuple[str, str]:
    if part[-1].isdecimal():
        part = f"{part[:-2]}.{part[-1]}{part[-2]}"  # 7b1 stands for 7.1b
    if len(part) > 1 and part[-2].isdecimal():
        part = part[:-1] + part[-1].upper()
    number = part[:-1]
    if n_weights and part[-1] in _POWERS and number.replace(".", "", 1).isdecimal():
        announced = float(number) * _POWERS[part[-1]]
        if abs(announced - n_weights) > 7 * n_weights // 8:
            # Far from the model's size: a context length.
            return "finetune", number + part[-1].lower()
    return "size", part
