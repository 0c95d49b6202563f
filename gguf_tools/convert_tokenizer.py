"""tokenizer.json and its companions to GGUF's tokenizer.* keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gguf_tools.convert_config import HubConfig, read_json
from gguf_tools.convert_pretokenizer import recognised
from gguf_tools.meta_value import MetaValue, ValueType, array, scalar, string
from gguf_tools.metadata import MAX_ARRAY_ENTRIES

# Kinds of vocabulary entries, as GGUF numbers them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MAX_VOCAB: Final = 1 << 20
BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-F]{2}>")
# Tokens of this look steer a model even where their file forgets to call them special.
_CONTROL_LOOK: Final = re.compile(r"<pad>|<mask>|<\|.*\|>|<｜.*｜>", re.DOTALL)
_ROLES: Final = (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
# Tokens that end a turn or a message, where eos is another one.
_TURN_ENDS: Final = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")
_MESSAGE_END: Final = "<|eom_id|>"


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The parsed files of one directory, {} for those that are missing."""

    tokenizer: Mapping[str, Any]
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    template: str | None


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Reads what a directory has of tokenizer files.

    Raises: ValueError for a damaged one, and where only a SentencePiece model file is there.
    """

    def optional(name: str) -> dict[str, Any]:
        return read_json(directory / name) if (directory / name).exists() else {}

    template_file = directory / "chat_template.jinja"
    template = template_file.read_text("utf-8") if template_file.exists() else None
    if not (directory / "tokenizer.json").exists() and (directory / "tokenizer.model").exists():
        raise ValueError(f"{directory}: only tokenizer.model is there; save a tokenizer.json beside it first")
    return TokenizerFiles(
        optional("tokenizer.json"),
        optional("tokenizer_config.json"),
        optional("generation_config.json"),
        template,
    )


def tokenizer_keys(
    files: TokenizerFiles, config: HubConfig, pre_tokenizer: str | None = None
) -> dict[str, MetaValue]:
    """All tokenizer.* keys of a model; without a tokenizer.json only its kind "none" and special ids.

    Raises: ValueError for a tokenizer that has no GGUF form.
    """
    if not files.tokenizer:
        return {"tokenizer.ggml.model": string("none"), **_special_ids(files, config, {})}
    model = files.tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(vocab, dict):
        raise ValueError("tokenizer.json holds no BPE model; use a llama, mistral or qwen model")
    tokens, types = _tokens(files, vocab, config.vocab_size)
    merges = _merges(model.get("merges"))
    is_bytes = not model.get("byte_fallback")
    keys = {"tokenizer.ggml.model": string("gpt2" if is_bytes else "llama")}
    if is_bytes:
        keys["tokenizer.ggml.pre"] = string(pre_tokenizer or recognised(files.tokenizer))
    else:
        keys["tokenizer.ggml.pre"] = string("default")
        types = _sentencepiece_types(tokens, types, model.get("unk_token"))
        scores = _scores(tokens, types, merges)
        keys["tokenizer.ggml.scores"] = array(ValueType.FLOAT32, scores)
    keys["tokenizer.ggml.tokens"] = array(ValueType.STRING, tokens)
    keys["tokenizer.ggml.token_type"] = array(ValueType.INT32, types)
    if is_bytes:
        lines = [" ".join(part.replace(" ", "\u0120") for part in merge) for merge in merges]
        keys["tokenizer.ggml.merges"] = array(ValueType.STRING, lines)
    ids = {token: index for index, token in enumerate(tokens)}
    keys |= _special_ids(files, config, ids) | _flags(files, is_bytes)
    return keys | _templates(files)


def _tokens(files: TokenizerFiles, vocab: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    added = [entry for entry in files.tokenizer.get("added_tokens") or () if isinstance(entry, dict)]
    by_id: dict[int, tuple[str, int]] = {}
    for token, index in vocab.items():
        by_id[_token_id(token, index)] = token, NORMAL
    for entry in added:
        text = entry.get("content")
        if not isinstance(text, str):
            raise ValueError("tokenizer.json has an added token without text; fetch it again")
        special = entry.get("special") is True or _CONTROL_LOOK.fullmatch(text) is not None
        by_id[_token_id(text, entry.get("id"))] = text, CONTROL if special else USER_DEFINED
    n_tokens = max(max(by_id, default=0) + 1, size)
    if max(by_id, default=0) >= size:
        raise ValueError(f"tokenizer.json has {n_tokens} tokens, config.json's vocab_size is {size}")
    filled = [by_id.get(index, (f"[PAD{index}]", UNUSED)) for index in range(n_tokens)]
    return [token for token, _ in filled], [kind for _, kind in filled]


def _token_id(token: str, index: Any) -> int:
    if type(index) is not int or not 0 <= index < MAX_VOCAB:
        raise ValueError(f"tokenizer.json gives {token[:40]!r} the id {str(index)[:20]}; fetch it again")
    return index


def _merges(merges: Any) -> list[tuple[str, str]]:
    """Both forms of merges: "a b", and ["a", "b"]."""
    if not isinstance(merges, list) or len(merges) > MAX_ARRAY_ENTRIES:
        raise ValueError("tokenizer.json has no list of merges; fetch it again")
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        parts = merge.split(" ", 1) if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) for p in parts):
            raise ValueError(f"tokenizer.json has the merge {str(merge)[:80]!r}; each joins two tokens")
        pairs.append((parts[0], parts[1]))
    return pairs


def _sentencepiece_types(tokens: Sequence[str], types: Sequence[int], unknown: Any) -> list[int]:
    def kind(token: str, present: int) -> int:
        if token == unknown:
            return UNKNOWN
        return BYTE if BYTE_TOKEN.fullmatch(token) else present

    return [kind(token, present) for token, present in zip(tokens, types, strict=True)]


def _scores(tokens: Sequence[str], types: Sequence[int], merges: Sequence[tuple[str, str]]) -> list[float]:
    """Scores that order merges as the file does: a token's is minus the rank of the first merge into it."""
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    # Pieces that no merge makes are never the result of one: any lower score will do.
    last = float(-len(rank) - 1)
    return [
        float(-rank[token]) if kind == NORMAL and token in rank else last if kind == NORMAL else 0.0
        for token, kind in zip(tokens, types, strict=True)
    ]


def _special_ids(files: TokenizerFiles, config: HubConfig, ids: Mapping[str, int]) -> dict[str, MetaValue]:
    found: dict[str, int] = {}
    for role, name in _ROLES:
        text = _text(files.config.get(f"{role}_token"))
        if text is not None and text in ids:
            found[name] = ids[text]
            continue
        for source in (config.special_ids, files.generation):
            value = source.get(f"{role}_token_id")
            first = value[0] if isinstance(value, list) and value else value
            if name not in found and type(first) is int and 0 <= first < config.vocab_size:
                found[name] = first
    ends = files.generation.get("eos_token_id")
    for text, index in ids.items():
        if isinstance(ends, list) and index in ends and index != found.get("eos"):
            if text in _TURN_ENDS:
                found.setdefault("eot", index)
            elif text == _MESSAGE_END:
                found["eom"] = index
    return {
        f"tokenizer.ggml.{name}_token_id": scalar(ValueType.UINT32, index) for name, index in found.items()
    }


def _flags(files: TokenizerFiles, is_bytes: bool) -> dict[str, MetaValue]:
    flags: dict[str, bool] = {}
    for name in ("add_bos_token", "add_eos_token"):
        if isinstance(files.config.get(name), bool):
            flags[name] = files.config[name]
    bos = _text(files.config.get("bos_token"))
    # What the pipeline does counts more than what its companion says.
    steps = files.tokenizer.get("post_processor") or {}
    for step in steps.get("processors") or [steps]:
        if step.get("type") == "TemplateProcessing":
            single = step.get("single") or [{}]
            flags["add_bos_token"] = (single[0].get("SpecialToken") or {}).get("id") in (bos, "<s>")
    if not is_bytes:
        flags["add_space_prefix"] = _adds_space(files.tokenizer)
    return {f"tokenizer.ggml.{name}": scalar(ValueType.BOOL, value) for name, value in flags.items()}


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    normalizer, pre = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    if any(step.get("type") == "Prepend" for step in normalizer.get("normalizers") or [normalizer]):
        return True
    return pre.get("type") == "Metaspace" and pre.get("prepend_scheme", "always") != "never"


def _templates(files: TokenizerFiles) -> dict[str, MetaValue]:
    template: Any = files.template or files.config.get("chat_template")
    if isinstance(template, str):
        return {"tokenizer.chat_template": string(template)}
    keys, names = {}, []
    for entry in template if isinstance(template, list) else ():
        name, text = entry.get("name"), entry.get("template")
        if name == "default":
            keys["tokenizer.chat_template"] = string(str(text))
        else:
            names.append(re.sub(r"[^a-zA-Z0-9_]", "_", str(name)))
            keys[f"tokenizer.chat_template.{names[-1]}"] = string(str(text))
    return ({"tokenizer.chat_templates": array(ValueType.STRING, names)} if names else {}) | keys


def _text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
