"""How byte-level BPE cuts text into words: GGUF's names and tokenizer.json's steps.

A name stands for a regex; it is recognised by the steps themselves, not by a hash of what they give.
Source: the tokenizer.json files that llama.cpp's converter gives these names to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One way of cutting: a regex first (or digits alone), then bytes, with GPT-2's own regex or not."""

    regex: str | None = None
    single_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False


PRE_TOKENIZERS: Final[Mapping[str, PreTokenizer]] = MappingProxyType(
    {
        "gpt-2": PreTokenizer(),
        "smollm": PreTokenizer(single_digits=True),
        "llama-bpe": PreTokenizer(_WORDS.replace("NUMBERS", "{1,3}"), ignore_merges=True),
        "qwen2": PreTokenizer(_WORDS.replace("NUMBERS", ""), nfc=True),
        "tekken": PreTokenizer(_TEKKEN, ignore_merges=True),
    }
)
# Other names that files carry for the same rules.
_SAME: Final[Mapping[str, str]] = MappingProxyType(
    {
        "default": "gpt-2",
        "gpt2": "gpt-2",
        "llama3": "llama-bpe",
        "llama-v3": "llama-bpe",
        "falcon3": "llama-bpe",
        "starcoder": "smollm",
        "refact": "smollm",
        "codeshell": "smollm",
        "deepseek-r1-qwen": "qwen2",
    }
)


def pre_tokenizer(name: str) -> PreTokenizer:
    """The rule that a GGUF name stands for.

    Raises: ValueError for an unknown name.
    """
    found = PRE_TOKENIZERS.get(_SAME.get(name, name))
    if found is None:
        known = ", ".join(sorted({*PRE_TOKENIZERS, *_SAME}))
        raise ValueError(
            f"the pre-tokenizer {name[:80]!r} has no tokenizer.json form here; known are {known}"
        )
    return found


def recognised(tokenizer: Mapping[str, Any]) -> str:
    """The GGUF name of the way a tokenizer.json cuts text.

    Raises: ValueError when it is none of the known ways.
    """
    steps = [_step(step) for step in _flat(tokenizer.get("pre_tokenizer"))]
    for name, rule in PRE_TOKENIZERS.items():
        if steps == [_step(step) for step in _flat(pre_tokenizer_json(rule))]:
            return name
    raise ValueError(
        "tokenizer.json cuts words in a way that has no GGUF name here; give the name with --pre-tokenizer"
    )


def pre_tokenizer_json(rule: PreTokenizer) -> dict[str, Any]:
    """The pre_tokenizer of a tokenizer.json."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": rule.regex is None,
    }
    if rule.regex is not None:
        first: dict[str, Any] = {
            "type": "Split",
            "pattern": {"Regex": rule.regex},
            "behavior": "Isolated",
            "invert": False,
        }
    elif rule.single_digits:
        first = {"type": "Digits", "individual_digits": True}
    else:
        return byte_level
    return {"type": "Sequence", "pretokenizers": [first, byte_level]}


def _flat(step: Any) -> list[Mapping[str, Any]]:
    if not isinstance(step, dict):
        return []
    inner = step.get("pretokenizers")
    return [s for s in inner if isinstance(s, dict)] if isinstance(inner, list) else [step]


def _step(step: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a step decides where text is cut."""
    match step.get("type"):
        case "Split":
            pattern = step.get("pattern")
            regex = pattern.get("Regex") if isinstance(pattern, dict) else None
            return "Split", regex, step.get("behavior"), step.get("invert", False)
        case "Digits":
            return "Digits", step.get("individual_digits", False)
        case "ByteLevel":
            return "ByteLevel", step.get("use_regex", True), step.get("add_prefix_space", True)
    return (str(step.get("type")), str(step))
