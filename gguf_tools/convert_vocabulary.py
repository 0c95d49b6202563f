"""GGUF's tokenizer.* keys to tokenizer.json, tokenizer_config.json and generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gguf_tools.convert_pretokenizer import pre_tokenizer, pre_tokenizer_json
from gguf_tools.convert_tokenizer import BYTE, CONTROL, MAX_VOCAB, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

KEY: Final = "tokenizer.ggml."
SPACE: Final = "\u2581"
MAX_PIECE_CHARS: Final = 512
MAX_MERGES: Final = 1 << 22
# Names whose files begin every text with BOS where they do not say so.
_BOS_BY_DEFAULT: Final = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"})


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The JSON files by name; only generation_config.json where the file has no vocabulary.

    Raises: ValueError for an inconsistent vocabulary or one without a tokenizer.json form.
    """
    kind = metadata.get(f"{KEY}model", "none")
    ids = _special_ids(metadata)
    files = {"generation_config.json": _generation(ids)}
    if kind == "none":
        return files
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"a vocabulary of kind {str(kind)[:80]!r} is not converted; gpt2 and llama are")
    tokens, types = _vocabulary(metadata)
    for name, index in ids.items():
        if index >= len(tokens):
            raise ValueError(f"{name} is {index}, outside the vocabulary of {len(tokens)} tokens")
    is_bytes = kind == "gpt2"
    add_bos = metadata.get(f"{KEY}add_bos_token")
    if add_bos is None:
        add_bos = not is_bytes or metadata.get(f"{KEY}pre") in _BOS_BY_DEFAULT
    if not is_bytes:
        ids = {"bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0} | ids
    pipeline = (
        _byte_level(metadata, tokens, types) if is_bytes else _sentencepiece(metadata, tokens, types, ids)
    )
    bos = ids.get("bos_token_id")
    files["tokenizer.json"] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, types),
        **pipeline,
        "post_processor": _post_processor(tokens, bos) if add_bos and bos is not None else None,
    }
    files["tokenizer.json"]["model"] = files["tokenizer.json"].pop("model")
    files["tokenizer_config.json"] = _tokenizer_config(metadata, tokens, ids, bool(add_bos))
    return files


def _special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    names = {
        "bos": "bos_token_id",
        "eos": "eos_token_id",
        "unknown": "unk_token_id",
        "padding": "pad_token_id",
        "eot": "eot",
        "eom": "eom",
    }
    found = {}
    for gguf, hub in names.items():
        value = metadata.get(f"{KEY}{gguf}_token_id")
        if type(value) is int and 0 <= value < 1 << 31:
            found[hub] = value
    return found


def _generation(ids: Mapping[str, int]) -> dict[str, Any]:
    ends = [ids[name] for name in ("eos_token_id", "eot", "eom") if name in ids]
    config: dict[str, Any] = {name: ids[name] for name in ("bos_token_id", "pad_token_id") if name in ids}
    if ends:
        unique = list(dict.fromkeys(ends))
        config["eos_token_id"] = unique if len(unique) > 1 else unique[0]
    return config


def _vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = metadata.get(f"{KEY}tokens")
    if not isinstance(tokens, list) or not 0 < len(tokens) <= MAX_VOCAB:
        raise ValueError(f"{KEY}tokens is not a list of 1 to {MAX_VOCAB} tokens; convert the model again")
    types = metadata.get(f"{KEY}token_type") or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ValueError(f"there are {len(types)} token types for {len(tokens)} tokens; convert again")
    return tokens, types


def _vocab(tokens: list[str], types: list[int]) -> dict[str, int]:
    vocab: dict[str, int] = {}
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == UNUSED:
            continue
        if not isinstance(token, str) or token in vocab:
            raise ValueError(f"the token {str(token)[:40]!r} occurs twice or is no text; convert again")
        vocab[token] = index
    return vocab


def _added(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    kinds = (CONTROL, USER_DEFINED, UNKNOWN)
    return [
        {
            "id": index,
            "content": tokens[index],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for index, kind in enumerate(types)
        if kind in kinds
    ]


def _model(vocab: dict[str, int], merges: list[list[str]], **rules: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **rules,
        "vocab": vocab,
        "merges": merges,
    }


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    rule = pre_tokenizer(str(metadata.get(f"{KEY}pre", "default")))
    lines = metadata.get(f"{KEY}merges")
    if not isinstance(lines, list) or not all(isinstance(line, str) and " " in line for line in lines):
        raise ValueError(f"{KEY}merges is not a list of pairs; convert the model again")
    merges = [line.split(" ", 1) for line in lines]
    return {
        "normalizer": {"type": "NFC"} if rule.nfc else None,
        "pre_tokenizer": pre_tokenizer_json(rule),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _model(_vocab(tokens, types), merges, ignore_merges=rule.ignore_merges),
    }


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int], ids: Mapping[str, int]
) -> dict[str, Any]:
    vocab = _vocab(tokens, types)
    scores = metadata.get(f"{KEY}scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ValueError(f"{KEY}scores does not hold one score for each token; convert the model again")
    prefix = metadata.get(f"{KEY}add_space_prefix", True)
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    undo: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.insert(0, {"type": "Prepend", "prepend": SPACE})
        undo.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = tokens[ids["unk_token_id"]] if "unk_token_id" in ids else None
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": undo},
        "model": _model(
            vocab,
            _merges(tokens, types, scores, vocab),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=BYTE in types,
        ),
    }


def _merges(
    tokens: list[str], types: list[int], scores: list[float], vocab: Mapping[str, int]
) -> list[list[str]]:
    """Every pair of tokens that joins into a token, by the score of what it makes, best first."""
    found: list[tuple[float, str, str]] = []
    for token, kind, score in zip(tokens, types, scores, strict=True):
        if kind != NORMAL or len(token) < 2:
            continue
        if len(token) > MAX_PIECE_CHARS or len(found) > MAX_MERGES:
            raise ValueError(f"the token {token[:40]!r}... makes too many merges; convert the model again")
        pairs = sorted(
            (vocab[token[:cut]], vocab[token[cut:]], cut)
            for cut in range(1, len(token))
            if token[:cut] in vocab and token[cut:] in vocab
        )
        found += [(score, token[:cut], token[cut:]) for _, _, cut in pairs]
    found.sort(key=lambda merge: merge[0], reverse=True)
    return [[left, right] for _, left, right in found]


def _post_processor(tokens: list[str], bos: int) -> dict[str, Any]:
    start = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, {"SpecialToken": {"id": tokens[bos], "type_id": 1}}, second],
        "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
    }


def _tokenizer_config(
    metadata: Mapping[str, Any], tokens: list[str], ids: Mapping[str, int], add_bos: bool
) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": add_bos}
    for role in ("bos", "eos", "unk", "pad"):
        if f"{role}_token_id" in ids:
            config[f"{role}_token"] = tokens[ids[f"{role}_token_id"]]
    config["clean_up_tokenization_spaces"] = False
    arch = metadata.get("general.architecture")
    config["model_max_length"] = metadata.get(f"{arch}.context_length", 1 << 30)
    names = [key for key in metadata if key.startswith("tokenizer.chat_template.")]
    default = metadata.get("tokenizer.chat_template")
    if names:
        named = {key.removeprefix("tokenizer.chat_template."): metadata[key] for key in names}
        named |= {"default": default} if default is not None else {}
        config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    elif default is not None:
        config["chat_template"] = default
    return config
