"""The vocabulary that a GGUF file carries: its tokenizer.ggml.* keys, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

MAX_VOCAB = 1 << 20


class TokenType(IntEnum):
    """Kind of a vocabulary entry, as GGUF numbers them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class PreRule:
    """How text is cut into words before byte-level BPE: the regex `kind`, and what goes with the name."""

    kind: str
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2 = PreRule("gpt2")
_LLAMA3 = PreRule("llama3", ignore_merges=True, add_bos=True)
_QWEN2 = PreRule("qwen2", nfc=True)
_SMOLLM = PreRule("smollm")

# Names as llama.cpp's converter writes them into tokenizer.ggml.pre.
PRE_RULES: Mapping[str, PreRule] = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "exaone4"), _GPT2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA3),
    **dict.fromkeys(("smaug-bpe", "dbrx"), PreRule("llama3")),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _SMOLLM),
    **dict.fromkeys(("exaone", "minerva-7b"), _SMOLLM),
}


@dataclass(frozen=True, slots=True)
class GGUFVocabulary:
    """A checked vocabulary: `tokens` and `types` by id, and the rules its file asks for."""

    model: str
    tokens: list[str]
    types: list[int]
    metadata: Mapping[str, Any]
    pre: PreRule

    def ids_of(self, kind: TokenType) -> list[int]:
        """List the ids of one token type."""
        return [index for index, value in enumerate(self.types) if value == kind]

    def special_id(self, name: str, default: int | None = None) -> int | None:
        """Read `tokenizer.ggml.<name>_token_id`.

        Raises: ValueError when the id lies outside the vocabulary.
        """
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            return default if default is not None and default < len(self.tokens) else None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise unusable(
                f"{name}_token_id is {value!r}, outside the vocabulary of {len(self.tokens)} tokens"
            )
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Read the boolean `tokenizer.ggml.<name>`."""
        return bool(self.metadata.get(f"tokenizer.ggml.{name}", default))

    @property
    def is_sentencepiece(self) -> bool:
        """Whether pieces are SentencePiece text rather than byte-level BPE."""
        return self.model == "llama"

    @property
    def add_bos(self) -> bool:
        """Whether encoding begins with BOS: the file's word, else the default of its tokenizer kind."""
        return self.flag("add_bos_token", self.is_sentencepiece or self.pre.add_bos)

    @property
    def add_space_prefix(self) -> bool:
        """Whether SentencePiece text gets a leading space before it is cut."""
        return self.is_sentencepiece and self.flag("add_space_prefix", True)


def unusable(what: str) -> ValueError:
    """Make the error that says what is wrong with the vocabulary."""
    return ValueError(f"the GGUF tokenizer is not usable: {what}; convert or download the model again")


def column(metadata: Mapping[str, Any], name: str, limit: int) -> list[Any]:
    """Read the list tokenizer.ggml.<name>.

    Raises: ValueError when it is missing, not a list, or longer than `limit`.
    """
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        raise unusable(f"tokenizer.ggml.{name} is missing")
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        raise unusable(f"tokenizer.ggml.{name} is not a list")
    if len(value) > limit:
        raise unusable(f"tokenizer.ggml.{name} has {len(value)} entries, more than {limit}")
    return value.tolist() if hasattr(value, "tolist") else list(value)


def read_vocabulary(metadata: Mapping[str, Any]) -> GGUFVocabulary:
    """Check the tokenizer.ggml.* keys and gather what building needs.

    Raises: ValueError for a missing, unknown or inconsistent key.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise unusable(f"its kind {model!r} is neither gpt2 (byte-level BPE) nor llama (SentencePiece)")
    name = metadata.get("tokenizer.ggml.pre", "default")
    pre = _GPT2 if model == "llama" else PRE_RULES.get(name) if isinstance(name, str) else None
    if pre is None:
        raise unusable(f"the pre-tokenizer {name!r} is not one of {', '.join(sorted(PRE_RULES))}")
    tokens = column(metadata, "tokens", MAX_VOCAB)
    if not tokens:
        raise unusable("tokenizer.ggml.tokens is empty")
    if not all(map(str.__instancecheck__, tokens)):
        raise unusable("tokenizer.ggml.tokens holds something that is not text")
    if "" in tokens:
        tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    types = [int(TokenType.NORMAL)] * len(tokens)
    if "tokenizer.ggml.token_type" in metadata:
        types = column(metadata, "token_type", MAX_VOCAB)
        if len(types) != len(tokens):
            raise unusable(f"there are {len(types)} token types for {len(tokens)} tokens")
    return GGUFVocabulary(model, tokens, types, metadata, pre)
